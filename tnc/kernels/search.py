"""Search the programs of a network: what is merged, in which order absorbed, how it lies.

Activations are walked leg by leg: a state is the order of their legs in memory and the operands
that are left. From a state, every operand that meets the activation can be absorbed in a few ways,
each a matrix product whose inputs and result lie as some library call takes them; where none does,
a copy comes first. Of two ways into one state the cheaper is kept, and of all states of one depth
the best few: costs are seconds as a `Machine` predicts them, forward, and with `training` also
backward.
"""

from __future__ import annotations

from dataclasses import dataclass

from tnc.derive.dense import INPUT, ROWS
from tnc.kernels.absorbing import Absorbed, Absorbing
from tnc.kernels.costs import Costs
from tnc.kernels.merges import Piece, groupings
from tnc.kernels.program import Copy, Operand, Program, Step
from tnc.net import Axis, Network

BEAM = 12
MERGES = 16
"""So many ways to merge cores are searched in full: those that a walk without a beam finds best."""
SLACK = 1.3
"""Ways are given up once they take this many times the best that is known."""


@dataclass(frozen=True)
class Found:
    """A program with its predicted seconds for the number of rows that it was searched for."""

    program: Program
    seconds: float


@dataclass(frozen=True)
class _State:
    layout: Axis
    left: frozenset[str]
    seconds: float
    steps: tuple[Step, ...]
    operands: tuple[Operand, ...]


_Ways = dict[tuple[object, ...], tuple[Absorbed, ...]]


def search(
    network: Network, rows: int, costs: Costs, *, beam: int = BEAM, keep: int = 8
) -> list[Found]:
    """Return the cheapest programs for `rows` inputs, cheapest first."""
    size = dict(network.sizes) | {ROWS: rows}
    found: list[Found] = []
    limit = float("inf")
    ways: _Ways = {}
    for pieces, merging in _promising(network, size, costs, ways):
        for state in _walk(network, pieces, size, costs, beam, limit - merging, ways):
            limit = min(limit, SLACK * (state.seconds + merging))
            program = Program(
                network.equation.input_indices,
                (ROWS, *network.equation.output_indices),
                state.operands,
                state.steps,
                network.sizes,
            )
            found.append(Found(program, state.seconds + merging))
    found.sort(key=lambda item: item.seconds)
    return found[:keep]


def _promising(
    network: Network, size: dict[str, int], costs: Costs, known: _Ways
) -> list[tuple[tuple[Piece, ...], float]]:
    """Return the ways to merge that look best, best first, with what merging costs."""
    ways = [(pieces, costs.merging(network, pieces)) for pieces in groupings(network)]
    if len(ways) <= MERGES:
        return ways
    best, looks = float("inf"), []
    for pieces, merging in ways:
        walked = _walk(network, pieces, size, costs, 1, 2 * best - merging, known)
        seconds = walked[0].seconds + merging if walked else float("inf")
        best = min(best, seconds)
        looks.append(seconds)
    order = sorted(range(len(ways)), key=lambda k: (looks[k], k))
    return [ways[k] for k in order[:MERGES]]


def _walk(
    network: Network,
    pieces: tuple[Piece, ...],
    size: dict[str, int],
    costs: Costs,
    beam: int,
    limit: float,
    ways: _Ways,
) -> list[_State]:
    """Return the best ends of walks; `ways` keeps how operands are absorbed, from walk to walk."""
    by_name = {name: (cores, legs) for name, cores, legs in pieces}
    outputs = network.equation.output_indices
    start = (ROWS, *network.equation.input_indices)
    every = frozenset(by_name)
    turned = (*start[1:], ROWS)
    copy = Copy("turned", INPUT, start, turned)
    states = [
        _State(start, every, 0.0, (), ()),
        _State(turned, every, costs.copy(copy, size), (copy,), ()),
    ]
    for depth in range(len(pieces)):
        best: dict[tuple[frozenset[str], Axis], tuple[float, _State, str, Absorbed]] = {}
        for state in states:
            source = _last(state)
            for name in sorted(state.left):
                cores, legs = by_name[name]
                rest = state.left - {name}
                needed = set(outputs).union(*(by_name[n][1] for n in rest))
                if len(rest) and not set(legs) & set(state.layout):
                    continue
                here = frozenset(needed.intersection((*state.layout, *legs)))
                asked = (source, state.layout, name, here, depth, not rest)
                if asked not in ways:
                    piece = (name, cores, legs)
                    absorbing = Absorbing(piece, state.layout, here, not rest, size, costs)
                    ways[asked] = absorbing.ways(source, depth)
                for way in ways[asked]:
                    key = (rest, way.layout)
                    total = state.seconds + way.seconds - way.again
                    if total <= limit and (key not in best or total < best[key][0]):
                        best[key] = (total, state, name, way)
        nearest = sorted(best.items(), key=lambda item: item[1][0])[:beam]
        states = [
            _State(
                layout,
                rest,
                total,
                (*state.steps, *way.steps),
                (*state.operands, Operand(name, by_name[name][0], way.lies)),
            )
            for (rest, layout), (total, state, name, way) in nearest
        ]
    wanted = (ROWS, *outputs)
    done = []
    for state in states:
        if state.layout != wanted:
            copy = Copy("output", _last(state), state.layout, wanted)
            seconds = costs.copy(copy, size) - costs.again(copy, size)
            state = _State(
                wanted, state.left, state.seconds + seconds, (*state.steps, copy), state.operands
            )
        done.append(state)
    return sorted(done, key=lambda state: state.seconds)[:4]


def _last(state: _State) -> str:
    step = state.steps[-1] if state.steps else None
    if step is None:
        return INPUT
    return step.result if isinstance(step, Copy) else step.result.value
