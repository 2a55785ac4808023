"""Branch on the sites that the Lagrangian cannot decide: large layers with few candidates."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np

from tnc.decide.allocation.knapsack import Floats, Ints, Knapsack
from tnc.decide.allocation.lagrangian import Dual, solve_dual

NODES = 24
"""Subproblems looked at: a limit that, unlike seconds, is the same on every machine."""


@dataclass(frozen=True, eq=False)
class _Node:
    """A subproblem: the sites that are fixed, and its multipliers."""

    fixed: tuple[tuple[int, int], ...]
    multipliers: Floats


def branch(small: Knapsack, root: Dual, accepted: float, *, nodes: int = NODES) -> Dual:
    """Raise the bound and lower the value by fixing one undecided site after the other.

    Best bound first. The site is the one whose two least reduced costs are next to each other and
    whose values differ most; each of its entries that could be in a better selection makes a
    subproblem with its own Lagrangian. Ends when value - bound <= accepted, at `nodes`
    subproblems, or where no site is undecided. The bound given is the least of what is left.
    """
    if root.picks is None:
        return root
    picks, order, closed = root.picks, 0, np.inf
    heap = [(root.bound, order, _Node((), root.multipliers))]
    while heap and order < nodes:
        bound, _, node = heap[0]
        reach = small.value(picks) - bound
        reduced_cost = _reduced_cost(small, node)
        site = _undecided_site(small, reduced_cost, reach)
        if reach <= accepted or site is None:
            break
        heapq.heappop(heap)
        for choice in np.flatnonzero(reduced_cost[site] <= reach + 1e-12):
            child = (*node.fixed, (site, int(choice)))
            dual = solve_dual(_fix(small, child))
            order += 1
            if dual.picks is not None and small.value(dual.picks) < small.value(picks):
                picks = dual.picks
            below = max(dual.bound, bound)
            if below >= small.value(picks) - accepted:
                closed = min(closed, below)
            else:
                heapq.heappush(heap, (below, order, _Node(child, dual.multipliers)))
    bound = min(closed, small.value(picks), *(entry[0] for entry in heap))
    return replace(root, bound=max(root.bound, bound), picks=picks)


def _fix(small: Knapsack, fixed: tuple[tuple[int, int], ...]) -> Knapsack:
    keep = small.open.copy()
    for site, choice in fixed:
        keep[site] = False
        keep[site, choice] = True
    return small.restrict(keep)


def _reduced_cost(small: Knapsack, node: _Node) -> Floats:
    fixed = _fix(small, node.fixed)
    priced = fixed.values + fixed.weights @ node.multipliers
    cost: Floats = priced - priced.min(axis=1, keepdims=True)
    return cost


def _undecided_site(small: Knapsack, reduced_cost: Floats, reach: float) -> int | None:
    """Give the site of largest value difference between its two nearly equal best entries."""
    if reduced_cost.shape[1] < 2:
        return None
    two: Ints = np.argsort(reduced_cost, axis=1, kind="stable")[:, :2]
    second = np.take_along_axis(reduced_cost, two, axis=1)[:, 1]
    tied = np.flatnonzero(second <= 1e-3 * reach)
    if not len(tied):
        return None
    values = np.take_along_axis(small.values, two, axis=1)[tied]
    return int(tied[np.abs(values[:, 0] - values[:, 1]).argmax()])
