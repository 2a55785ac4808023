"""How an activation absorbs an operand: every order of the result, each by its cheapest product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple

from tnc.derive.dense import ROWS
from tnc.kernels.costs import Costs
from tnc.kernels.layouts import same_memory
from tnc.kernels.merges import Piece
from tnc.kernels.program import Copy, Matrix, Multiply, Step
from tnc.net import Axis


class Absorbed(NamedTuple):
    """One way to absorb an operand: its steps and seconds, and how result and operand lie after."""

    steps: tuple[Step, ...]
    seconds: float
    again: float
    """By how much it is cheaper as the last of a program, whose result is not recomputed."""
    layout: Axis
    lies: Axis


@dataclass
class Absorbing:
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

    def ways(self, source: str, depth: int) -> tuple[Absorbed, ...]:
        """Return the cheapest way into each order of the result; the activation is `source`."""
        legs = self.piece[2]
        kinds = {n: "m" if n not in legs else "b" if n in self.needed else "k" for n in self.layout}
        fresh = tuple(n for n in legs if n not in kinds)
        grouped = "b" in kinds.values()
        best: dict[Axis, Absorbed] = {}
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
                        best[layout] = Absorbed(
                            (*before, step), seconds, again, layout, right.layout
                        )
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
