"""Search the programs of a network: what is merged, in which order absorbed, how it lies.

Activations are walked leg by leg: a state is the order of their legs in memory and the operands
that are left. From a state, every operand that meets the activation can be absorbed in a few ways,
each a matrix product whose inputs and result lie as some library call takes them; where none does,
a copy comes first. Of two ways into one state the cheaper is kept, and of all states of one depth
the best few: costs are seconds as a `Machine` predicts them, forward, and with `training` also
backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from tnc.derive.dense import INPUT, ROWS
from tnc.kernels.costs import Costs
from tnc.kernels.layouts import same_memory
from tnc.kernels.merges import Piece, groupings
from tnc.kernels.program import Copy, Matrix, Multiply, Operand, Program, Step
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


Way = tuple[tuple[Step, ...], float, Axis, Axis]
"""Steps, seconds, the activation's new layout, and the operand's layout."""

Ways = dict[tuple[object, ...], tuple[Way, ...]]


def search(
    network: Network, rows: int, costs: Costs, *, beam: int = BEAM, keep: int = 8
) -> list[Found]:
    """Return the cheapest programs for `rows` inputs, cheapest first."""
    size = dict(network.sizes) | {ROWS: rows}
    found: list[Found] = []
    limit = float("inf")
    ways: Ways = {}
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
    network: Network, size: dict[str, int], costs: Costs, known: Ways
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
    ways: Ways,
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
        best: dict[tuple[frozenset[str], Axis], _State] = {}
        for state in states:
            for name in sorted(state.left):
                cores, legs = by_name[name]
                rest = state.left - {name}
                needed = set(outputs).union(*(by_name[n][1] for n in rest))
                if len(rest) and not set(legs) & set(state.layout):
                    continue
                here = frozenset(needed.intersection((*state.layout, *legs)))
                asked = (_last(state), state.layout, name, here, depth)
                if asked not in ways:
                    piece = (name, cores, legs)
                    ways[asked] = tuple(_absorb(state, piece, here, size, costs, depth))
                for steps, seconds, layout, lies in ways[asked]:
                    key = (rest, layout)
                    total = state.seconds + seconds
                    if not rest:
                        total -= costs.again(steps[-1], size)
                    if total > limit:
                        continue
                    if key not in best or total < best[key].seconds:
                        best[key] = _State(
                            layout,
                            rest,
                            total,
                            (*state.steps, *steps),
                            (*state.operands, Operand(name, cores, lies)),
                        )
        states = sorted(best.values(), key=lambda state: state.seconds)[:beam]
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


def _absorb(
    state: _State,
    piece: Piece,
    needed: frozenset[str],
    size: dict[str, int],
    costs: Costs,
    depth: int,
) -> Iterator[Way]:
    name, cores, legs = piece
    layout = state.layout
    own = set(legs)
    kinds = {n: "m" if n not in own else "b" if n in needed else "k" for n in layout}
    fresh = tuple(n for n in legs if n not in kinds)
    before: tuple[Step, ...] = ()
    source, spent = _last(state), 0.0
    for lies, roles, groups in _readable(layout, kinds):
        steps, seconds = before, spent
        value = source
        if lies != layout:
            copy = Copy(f"t{depth}c", source, layout, lies)
            steps, seconds, value = (*before, copy), spent + costs.copy(copy, size), copy.result
        left = Matrix(value, groups, roles)
        grouped = any(kind == "b" for kind in kinds.values())
        for brought in _orders(fresh):
            for result_roles in _results(roles):
                given = {"n": brought, **dict(zip(roles, groups))}
                result = Matrix(
                    f"t{depth}", tuple(given[role] for role in result_roles), result_roles
                )
                right = _operand(name, legs, given, grouped, result_roles, size)
                step = costs.turned(Multiply(result, left, right), legs, size)
                right = step.right
                laying = 0.0
                if len(cores) == 1 and not same_memory(right.layout, legs, size):
                    laying = costs.laying(legs, size)
                yield (
                    (*steps, step),
                    seconds + laying + costs.product(step, size),
                    result.layout,
                    right.layout,
                )


def _operand(
    name: str,
    legs: Axis,
    given: dict[str, Axis],
    grouped: bool,
    result: str,
    size: dict[str, int],
) -> Matrix:
    """Return the operand as it lies already if a product can take it so, else turned for it."""
    for roles in ("bkn", "bnk", "kbn", "nbk") if grouped else ("kn", "nk"):
        groups = tuple(given[role] for role in roles)
        if same_memory(tuple(n for group in groups for n in group), legs, size):
            return Matrix(name, groups, roles)
    roles = ("b" if grouped else "") + ("kn" if result.index("m") < result.index("n") else "nk")
    return Matrix(name, tuple(given[role] for role in roles), roles)


def _results(roles: str) -> tuple[str, ...]:
    """In which orders a library call can write the product of an activation that lies so."""
    if "b" in roles:
        return ("bmn", "bnm", "mbn", "nbm")
    return ("mn", "nm")


def _readable(layout: Axis, kinds: dict[str, str]) -> Iterator[tuple[Axis, str, tuple[Axis, ...]]]:
    """Yield layouts from which a product can be taken: as it lies if it can be, else after a copy.

    Each with its roles and groups.
    """
    runs: list[tuple[str, list[str]]] = []
    for name in layout:
        if runs and runs[-1][0] == kinds[name]:
            runs[-1][1].append(name)
        else:
            runs.append((kinds[name], [name]))
    pattern = "".join(kind for kind, _ in runs)
    groups = [tuple(names) for _, names in runs]
    grouped = "b" in pattern
    if "k" not in pattern and (grouped or pattern == "m"):
        pattern, groups = pattern + "k", [*groups, ()]
    if pattern == "mkm":
        yield layout, "bkm", tuple(groups)
        return
    if pattern in ("mk", "km", "mbk", "bmk", "bkm", "kbm"):
        yield layout, pattern, tuple(groups)
        return
    stay = tuple(n for n in layout if kinds[n] == "m")
    summed = tuple(n for n in layout if kinds[n] == "k")
    batch = tuple(n for n in layout if kinds[n] == "b")
    others = tuple(n for n in stay if n != ROWS)
    for kept in dict.fromkeys(((*others, ROWS), (ROWS, *others))):
        for roles in ("bmk", "bkm", "kbm", "mbk") if grouped else ("mk", "km"):
            chosen = {"m": kept, "k": summed, "b": batch}
            parts = tuple(chosen[role] for role in roles)
            yield tuple(n for part in parts for n in part), roles, parts


def _orders(fresh: Axis) -> Iterator[Axis]:
    """Yield orders of the legs that an operand brings."""
    if len(fresh) <= 3:
        yield from permutations(fresh)
        return
    yield fresh
    yield fresh[::-1]
