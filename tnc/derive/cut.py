"""Cuts: which legs a bond separates.

Removing one bond from a tree of cores leaves two sides. The singular values of the weight, unfolded
by those sides, bound what any rank of the bond can reach. Legs that both sides carry (block tensor
trains) are batch legs: the unfolding is one matrix for each of their values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tnc.net import Axis, Equation


@dataclass(frozen=True)
class Cut:
    """The legs on the two sides of a bond, and those on both."""

    left: Axis
    right: Axis
    batch: Axis


@lru_cache(maxsize=4096)
def cut(equation: Equation, bond: str) -> Cut | None:
    """Return the cut of a bond, or None where removing it does not part the network in two.

    >>> from tnc.net import parse_equation
    >>> cut(parse_equation("U[o r] G[r s] V[s i] : i -> o"), "s")
    Cut(left=('o',), right=('i',), batch=())
    """
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(core.name for core in equation.cores)
    for name in equation.bonds:
        if name != bond:
            holders = [core.name for core in equation.cores if name in core.indices]
            nx.add_path(graph, holders)
    sides = sorted(nx.connected_components(graph), key=lambda side: _first(equation, side))
    if len(sides) != 2:
        return None
    legs = (*equation.output_indices, *equation.input_indices)
    held = [
        {n for core in equation.cores if core.name in side for n in core.indices} for side in sides
    ]
    if not all(bond in side for side in held):
        return None
    unique = tuple(dict.fromkeys(legs))
    both = tuple(n for n in unique if n in held[0] and n in held[1])
    left = tuple(n for n in unique if n in held[0] and n not in both)
    right = tuple(n for n in unique if n in held[1] and n not in both)
    return Cut(left, right, both)


def _first(equation: Equation, side: set[str]) -> int:
    return min(place for place, core in enumerate(equation.cores) if core.name in side)
