"""How many candidates a space has, and all of them, each once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, permutations, product
from math import factorial, prod

from tnc.explore.axes import Point
from tnc.explore.space import Space
from tnc.explore.topology import Topology, narrowed

_MOST_SYMMETRIES = 50_000


@dataclass(frozen=True)
class Size:
    """The number of points of a space and of different topologies that it does not refuse.

    Where `exact` is false, `candidates` is an upper bound: points without those that a symmetry
    of the graph or the sizes of the modes make equal to another.
    """

    points: int
    candidates: int
    exact: bool

    def __str__(self) -> str:
        """Write as reports do.

        >>> print(Size(4096, 130, True))
        130 candidates at 4096 points
        """
        most = "" if self.exact else "at most "
        return f"{most}{self.candidates} candidates at {self.points} points"


def size_of(space: Space, most: int = 1_000_000) -> Size:
    """Count the candidates: all of them one by one where at most `most` have to be looked at."""
    bound = _bound(space)
    if bound > most:
        return Size(space.points, bound, False)
    return Size(space.points, sum(1 for _ in candidates(space)), True)


def candidates(space: Space) -> Iterator[tuple[Point, Topology]]:
    """Yield every topology that the space does not refuse, once, at the first of its points."""
    seen: set[Topology] = set()
    ranks = [range(1, cap + 1) for cap in _caps(space)]
    for order in _orders(space):
        for point in product(*ranks):
            full: Point = (*point, order) if space.places else point
            topology = space.topology(full)
            if topology not in seen:
                seen.add(topology)
                if not space.refuses(topology):
                    yield full, topology


def _bound(space: Space) -> int:
    orders = factorial(len(space.modes)) // len(_symmetries(space)) if space.places else 1
    return prod(_caps(space)) * orders


def _caps(space: Space) -> list[int]:
    """Return the widest that every bond can be: points above are equal to one within."""
    modes = (max(space.modes),) * len(space.modes) if space.places else space.modes
    joined = narrowed(modes, dict.fromkeys(space.pairs, space.rank))
    return [joined.get(pair, 1) for pair in space.pairs]


def _orders(space: Space) -> Iterator[tuple[int, ...]]:
    """Yield one order of the modes of all that the symmetries of the graph make alike."""
    if not space.places:
        yield tuple(range(len(space.modes)))
        return
    symmetries = _symmetries(space)
    for order in permutations(range(len(space.modes))):
        if all(order <= tuple(order[k] for k in symmetry) for symmetry in symmetries):
            yield order


def _symmetries(space: Space) -> list[tuple[int, ...]]:
    """Return where the vertices with modes go in the symmetries of the graph, or part of them.

    Where a graph has very many, those that are left out make the count an upper bound.
    """
    import networkx

    count = len(space.modes)
    graph = networkx.Graph(space.pairs)
    networkx.set_node_attributes(graph, {v: v < count for v in graph}, "mode")
    match = networkx.algorithms.isomorphism.categorical_node_match("mode", True)
    matcher = networkx.algorithms.isomorphism.GraphMatcher(graph, graph, node_match=match)
    found = islice(matcher.isomorphisms_iter(), _MOST_SYMMETRIES)
    return sorted({tuple(image[v] for v in range(count)) for image in found})
