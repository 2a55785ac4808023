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
from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple

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


class _Way(NamedTuple):
    """One way to absorb an operand: its steps and seconds, and how result and operand lie after."""

    steps: tuple[Step, ...]
    seconds: float
    again: float
    """By how much it is cheaper as the last of a program, whose result is not recomputed."""
    layout: Axis
    lies: Axis


_Ways = dict[tuple[object, ...], tuple[_Way, ...]]


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
        best: dict[tuple[frozenset[str], Axis], tuple[float, _State, str, _Way]] = {}
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
                    absorbing = _Absorbing(piece, state.layout, here, not rest, size, costs)
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


@dataclass
class _Absorbing:
    """The ways in which an activation that lies as `layout` absorbs an operand.

    There are hundreds for an operand of many legs, and a search asks for thousands of operands. So
    each is priced by what prices depend on, sizes by roles, and only the cheapest into each order
    of the result is spelled out.
    """

    piece: Piece
    layout: Axis
    needed: frozenset[str]
    last: bool
    size: dict[str, int]
    costs: Costs
    _operands: dict[tuple[Axis, bool], tuple[str, bool]] = field(default_factory=dict)
    _prices: dict[tuple[object, ...], tuple[str, float, float]] = field(default_factory=dict)
    _laid: dict[tuple[Axis, str], tuple[Matrix, float]] = field(default_factory=dict)

    def ways(self, source: str, depth: int) -> tuple[_Way, ...]:
        """Return the cheapest way into each order of the result; the activation is `source`."""
        legs = self.piece[2]
        kinds = {n: "m" if n not in legs else "b" if n in self.needed else "k" for n in self.layout}
        fresh = tuple(n for n in legs if n not in kinds)
        grouped = "b" in kinds.values()
        best: dict[Axis, _Way] = {}
        for lies, roles, groups in _readable(self.layout, kinds):
            before: tuple[Step, ...] = ()
            spent, left = 0.0, Matrix(source, groups, roles)
            if lies != self.layout:
                copy = Copy(f"t{depth}c", source, self.layout, lies)
                before, spent = (copy,), self.costs.copy(copy, self.size)
                left = Matrix(copy.result, groups, roles)
            for brought in _orders(fresh):
                given = {"n": brought, **dict(zip(roles, groups))}
                for result in _results(roles):
                    right_roles, product, again = self._priced(left, given, result, grouped)
                    right, laying = self._lay(right_roles, given)
                    layout = tuple([name for role in result for name in given[role]])
                    seconds = spent + laying + product
                    known = best.get(layout)
                    if known is None or seconds - again < known.seconds - known.again:
                        step = Multiply(_matrix(f"t{depth}", result, given), left, right)
                        best[layout] = _Way((*before, step), seconds, again, layout, right.layout)
        return tuple(best.values())

    def _priced(
        self, left: Matrix, given: dict[str, Axis], result: str, grouped: bool
    ) -> tuple[str, float, float]:
        """Return how the operand lies, by roles, the product's seconds, and those to repeat it."""
        brought, first = given["n"], result.index("m") < result.index("n")
        if (brought, first) not in self._operands:
            self._operands[brought, first] = self._operand(given, first, grouped)
        roles, lies = self._operands[brought, first]
        key = (left.roles, result, roles, lies)
        if key not in self._prices:
            product = _matrix("", result, given)
            step = Multiply(product, left, _matrix(self.piece[0], roles, given))
            step = self.costs.turned(step, self.piece[2], self.size)
            again = self.costs.again(step, self.size) if self.last else 0.0
            self._prices[key] = step.right.roles, self.costs.product(step, self.size), again
        return self._prices[key]

    def _operand(self, given: dict[str, Axis], first: bool, grouped: bool) -> tuple[str, bool]:
        """Return in which order of roles an operand is taken, and whether it lies so already.

        If a product cannot take it as it lies, it is turned for it.
        """
        for roles in ("bkn", "bnk", "kbn", "nbk") if grouped else ("kn", "nk"):
            legs = tuple([name for role in roles for name in given[role]])
            if same_memory(legs, self.piece[2], self.size):
                return roles, True
        return ("b" if grouped else "") + ("kn" if first else "nk"), False

    def _lay(self, roles: str, given: dict[str, Axis]) -> tuple[Matrix, float]:
        """Return the operand in an order of roles, and the seconds of writing it so."""
        key = (given["n"], roles)
        if key not in self._laid:
            name, cores, legs = self.piece
            right = _matrix(name, roles, given)
            copied = len(cores) == 1 and not same_memory(right.layout, legs, self.size)
            self._laid[key] = right, self.costs.laying(legs, self.size) if copied else 0.0
        return self._laid[key]


def _matrix(value: str, roles: str, given: dict[str, Axis]) -> Matrix:
    return Matrix(value, tuple([given[role] for role in roles]), roles)


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
