"""Spaces of topologies: which bonds there may be, how wide, and which mode sits where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import prod
from random import Random

from tnc.errors import SearchError
from tnc.explore.axes import Axis, Places, Point, Rank, Value
from tnc.explore.topology import Topology

BONDS = ("ring", "chain", "tree", "star", "full")


@dataclass(frozen=True)
class Space:
    """Every topology on `modes` whose bonds are among `pairs`, of sizes 1 to `rank`.

    With `places`, modes may sit at any vertex: a ring then stands for all rings. `hidden`
    vertices hold no mode. Candidates above `ratio` times the dense size, of more than `params`
    parameters, or with more than `degree` bonds at a vertex are refused unfitted.
    """

    modes: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    rank: int
    places: bool = False
    hidden: int = 0
    ratio: float = 10.0
    params: int | None = None
    degree: int | None = None

    def __post_init__(self) -> None:
        why = self.refuses(Topology.of(self.modes, (), 0))
        if why:
            raise SearchError(
                f"the space is empty: even without bonds a network on {self.modes} has {why}",
                hint=f"allow {sum(self.modes)} parameters or more",
            )

    @classmethod
    def of(
        cls,
        modes: tuple[int, ...],
        bonds: str | tuple[tuple[int, int], ...] = "ring",
        rank: int = 4,
        places: bool | None = None,
        ratio: float = 10.0,
        params: int | None = None,
        degree: int | None = None,
    ) -> Space:
        """Build by the name of a graph, or by its pairs. Raises SearchError.

        `ring`, `chain` and `tree` (balanced and binary, modes at its leaves) search for the place
        of every mode too unless `places` says otherwise; `full` has a bond between every two, and
        `star` (Tucker) one vertex without a mode that is joined to every mode.
        """
        if len(modes) < 2 or min(modes) < 1 or rank < 1:
            raise SearchError(
                f"no space of bonds up to {rank} on modes {modes}",
                hint="two modes or more, ranks of at least 1",
            )
        count, hidden = len(modes), 0
        named = isinstance(bonds, str)
        if bonds == "full":
            pairs = tuple(combinations(range(count), 2))
        elif bonds == "chain" or (bonds == "ring" and count == 2):
            pairs = tuple((k, k + 1) for k in range(count - 1))
        elif bonds == "ring":
            pairs = (*((k, k + 1) for k in range(count - 1)), (0, count - 1))
        elif bonds == "tree":
            pairs, hidden = _binary(count)
        elif bonds == "star":
            pairs, hidden = tuple((k, count) for k in range(count)), 1
        elif isinstance(bonds, str):
            raise SearchError(
                f"no graph is named {bonds!r}",
                hint=f"one of {', '.join(BONDS)}, or a list of pairs",
            )
        else:
            pairs = tuple((min(pair), max(pair)) for pair in bonds)
            hidden = max((max(pair) for pair in pairs), default=-1) + 1 - count
            if (
                {v for pair in pairs for v in pair} != set(range(count + max(hidden, 0)))
                or len(set(pairs)) != len(pairs)
                or any(a == b for a, b in pairs)
            ):
                raise SearchError(
                    f"the pairs {pairs} are no graph on {count} modes",
                    hint="every mode in a pair, every pair once, vertices without modes last",
                )
        moves = named and bonds not in ("full", "star") if places is None else places
        return cls(tuple(modes), pairs, rank, moves, hidden, ratio, params, degree)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """One axis for every bond, in order, then one for the places of modes where they move."""
        ranks = tuple(Rank(f"{a}-{b}", self.rank) for a, b in self.pairs)
        return (*ranks, Places("order", len(self.modes))) if self.places else ranks

    @property
    def points(self) -> int:
        """The number of points; candidates are fewer, since several points are one topology."""
        return prod(axis.size for axis in self.axes)

    def topology(self, point: Point) -> Topology:
        """Return the canonical topology at a point."""
        order: Value = point[-1] if self.places else tuple(range(len(self.modes)))
        assert isinstance(order, tuple)
        bonds = []
        for (a, b), size in zip(self.pairs, point):
            assert isinstance(size, int)
            bonds.append((_at(order, a), _at(order, b), size))
        return Topology.of(self.modes, bonds, self.hidden)

    def refuses(self, topology: Topology) -> str:
        """Return why a topology is not evaluated; empty when it is."""
        if topology.ratio > self.ratio:
            return f"{topology.ratio:.3g} times the dense size, at most {self.ratio:g} is asked"
        if self.params is not None and topology.parameters > self.params:
            return f"{topology.parameters} parameters, at most {self.params} are asked"
        most = max(map(len, topology.legs))
        if self.degree is not None and most > self.degree:
            return f"{most} bonds at a vertex, at most {self.degree} are asked"
        return ""

    def draw(self, rng: Random) -> Point:
        """Return any point, each as likely."""
        return tuple(axis.draw(rng) for axis in self.axes)

    def allowed(
        self, rng: Random, draw: Callable[[], Point] | None = None, tries: int = 20
    ) -> Point:
        """Return a point that is not refused: the first of `tries` draws, or the last cut down.

        Draws are from all points unless `draw` says from where. Cutting down lowers one rank after
        another, drawn at random, which ends at no bonds at all.
        """
        for _ in range(tries):
            point = draw() if draw is not None else self.draw(rng)
            if not self.refuses(self.topology(point)):
                return point
        cut = list(point)
        while self.refuses(self.topology(tuple(cut))):
            wide = [(k, size) for k, size in enumerate(cut) if isinstance(size, int) and size > 1]
            k, size = rng.choice(wide)
            cut[k] = size - 1
        return tuple(cut)

    def all(self) -> Iterator[Point]:
        """Yield every point, last axis fastest."""
        return product(*(axis.values() for axis in self.axes))


def _at(order: tuple[int, ...], vertex: int) -> int:
    return order[vertex] if vertex < len(order) else vertex


def _binary(count: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """Return the bonds of a balanced binary tree over `count` leaves, and its inner vertices.

    The root has no mode and two bonds, so it is left out and its children are joined.
    """
    level, following, pairs = list(range(count)), count, []
    while len(level) > 2:
        above = []
        for first, second in zip(level[::2], level[1::2]):
            pairs += [(first, following), (second, following)]
            above.append(following)
            following += 1
        level = above + level[len(level) - len(level) % 2 :]
    pairs.append((min(level), max(level)))
    return tuple((min(pair), max(pair)) for pair in pairs), following - count
