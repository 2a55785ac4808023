"""Solve the multiple-choice knapsack: dominance, Lagrangian, reduced costs, branching, HiGHS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tnc.decide.allocation.branching import branch
from tnc.decide.allocation.highs import solve_binary
from tnc.decide.allocation.knapsack import Floats, Ints, Knapsack, Mask
from tnc.decide.allocation.lagrangian import Dual, solve_dual

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

CORES = (150, 500, 1500)
"""Entries beyond one per site in the programs that come before the one that proves."""

CORE_NODES = 100
"""Branchings in each of those: a limit that, unlike seconds, is the same on every machine."""

TOLERANCE = 1e-6
"""What HiGHS takes for no violation of a row."""


@dataclass(frozen=True)
class Effort:
    """Say how hard to try.

    `gap`: accepted (value - bound) / |value|; `seconds`: limit on each integer program, after
    which the best known selection and its honest gap are given; `exact`: False stops at the
    Lagrangian. Only a program that runs into `seconds` can make results differ between machines.
    """

    gap: float = 1e-4
    seconds: float = 10.0
    exact: bool = True


@dataclass(frozen=True, eq=False)
class Answer:
    """Hold a selection, or its absence.

    `picks` (sites,), None without one; `bound`: no selection that fits is below (+inf: proven
    that none fits); `solver`: what settled it.
    """

    picks: Ints | None
    bound: float
    solver: str

    @property
    def infeasible(self) -> bool:
        """Say whether it is proven that no selection fits."""
        return self.picks is None and self.bound == np.inf


def solve(knapsack: Knapsack, effort: Effort) -> Answer:
    """Minimise the values within the limits, up to `effort.gap`.

    Dominated entries and those that fit in no selection are closed; the Lagrangian gives a bound
    L and a selection of value U; an entry whose reduced cost exceeds U - L is in no better
    selection and is closed too; branching and HiGHS solve what is left. No step loses an optimum.
    """
    any_fit = effort.gap == np.inf
    keep = knapsack.affordable if any_fit else knapsack.affordable & knapsack.undominated
    if not keep.any(axis=1).all():
        return Answer(None, np.inf, "trivial")
    compact, places = knapsack.compact(keep)
    small, offset, scale = compact.scaled()
    dual = solve_dual(small, any_fit=any_fit)
    if dual.bound == np.inf:
        return Answer(None, np.inf, "lagrangian")
    known = Answer(dual.picks, dual.bound, "lagrangian")
    if effort.exact:
        known = _programs(small, dual, offset / scale, effort)
    if known.picks is None:
        return replace(known, bound=offset + scale * known.bound)
    picks = places[knapsack.sites, known.picks]
    picks = picks if any_fit else knapsack.ordered(picks)
    bound = min(offset + scale * known.bound, knapsack.value(picks))
    return Answer(picks, bound, known.solver)


def feasible(knapsack: Knapsack, effort: Effort) -> Answer:
    """Look for any selection within the limits, without caring for its value."""
    return solve(knapsack, replace(effort, gap=np.inf))


def _programs(small: Knapsack, root: Dual, offset: float, effort: Effort) -> Answer:
    """Solve programs over ever more entries of small reduced cost, then over all that matter.

    The small ones only improve the selection; branching on the sites that the Lagrangian cannot
    decide, where too much is left for one program, also raises the bound; the last program, over
    every entry whose reduced cost is within value - root bound, proves.
    """
    known = Answer(root.picks, root.bound, "lagrangian")
    priced = small.values + small.weights @ root.multipliers
    reduced_cost = priced - priced.min(axis=1, keepdims=True)
    for step, extra in enumerate((*CORES, None)):
        accepted = _accepted(known, small, offset, effort)
        if _settled(known, small, accepted):
            return known
        keep = _entries_that_matter(small, known, root, reduced_cost)
        if step == 1 and keep.sum() > len(small.values) + CORES[1]:
            known = _branched(small, root, known, accepted)
            if _settled(known, small, accepted):
                return known
            keep = _entries_that_matter(small, known, root, reduced_cost)
        ranked = np.sort(reduced_cost[keep])
        count = len(ranked) if extra is None else len(small.values) + extra
        last = count >= len(ranked)
        if not last:
            keep &= reduced_cost <= ranked[count]
            if known.picks is not None:
                keep[small.sites, known.picks] = True
        known = _program(small.restrict(keep), known, accepted, effort, proves=last)
        if last:
            return known
    return known


def _settled(known: Answer, small: Knapsack, accepted: float) -> bool:
    return known.picks is not None and small.value(known.picks) - known.bound <= accepted


def _branched(small: Knapsack, root: Dual, known: Answer, accepted: float) -> Answer:
    """Branch from the root with the best selection known; without one there is nothing to cut."""
    dual = branch(small, replace(root, picks=known.picks), accepted)
    solver = known.solver if dual.picks is known.picks else "branching"
    return Answer(dual.picks, max(known.bound, dual.bound), solver)


def _accepted(known: Answer, small: Knapsack, offset: float, effort: Effort) -> float:
    """Turn the relative gap of the true value into an absolute one of the scaled value."""
    if effort.gap == np.inf:
        return np.inf
    value = 1.0 if known.picks is None else small.value(known.picks)
    return max(1e-12, effort.gap * abs(offset + value))


def _entries_that_matter(small: Knapsack, known: Answer, root: Dual, reduced_cost: Floats) -> Mask:
    """Drop the entries that are in no better selection: reduced cost above value - root bound."""
    if known.picks is None:
        return small.open.copy()
    keep: Mask = reduced_cost <= small.value(known.picks) - root.bound + 1e-9
    keep[small.sites, known.picks] = True
    return keep & small.open


def _program(
    small: Knapsack, known: Answer, accepted: float, effort: Effort, *, proves: bool
) -> Answer:
    """Run HiGHS; on rounding beyond a limit tighten that limit a little and run again."""
    margin = np.full(len(small.limits), 0.0 if proves else 1.2 * TOLERANCE)
    for _ in range(4):
        result, floor = _milp(
            small,
            margin,
            known,
            accepted if proves else accepted / 8,
            effort,
            None if proves else CORE_NODES,
        )
        proves = proves and not margin.any()
        if result.x is None:
            none = proves and result.status == 2 and known.picks is None
            return Answer(None, np.inf, "milp") if none else known
        if proves and result.mip_dual_bound is not None:
            known = replace(known, bound=max(known.bound, floor(result.mip_dual_bound)))
        picks = _read(small, result.x)
        if small.fits(picks):
            if known.picks is None or small.value(picks) < small.value(known.picks) - 1e-15:
                known = replace(known, picks=picks)
            return replace(known, solver="milp")
        margin = margin + 1.5 * np.maximum(small.totals(picks) - small.limits, 0.0)
    return known


def _undecided(small: Knapsack) -> Ints:
    several: Ints = np.flatnonzero(small.open.sum(axis=1) > 1)
    return several


def _milp(
    small: Knapsack,
    margin: Floats,
    known: Answer,
    accepted: float,
    effort: Effort,
    nodes: int | None,
) -> tuple[OptimizeResult, Callable[[float], float]]:
    """Solve the sparse program over the sites that still have a choice.

    Its objective is scaled to 1000 at the known value, far above the absolute gap of 1e-6 at which
    HiGHS stops; the second result turns its bound into one of ours, less that gap.
    """
    from scipy import sparse
    from scipy.optimize import LinearConstraint, OptimizeResult

    sites = _undecided(small)
    decided = np.setdiff1d(small.sites, sites)
    forced = small.open[decided].argmax(axis=1)
    used = small.weights[decided, forced].sum(axis=0)
    decided_value = float(small.values[decided, forced].sum())
    rows, choices = np.nonzero(small.open[sites])
    count = len(rows)
    if count == 0:
        fits = bool(np.all(used <= small.limits + 1e-9))
        empty = OptimizeResult(
            x=np.zeros(0) if fits else None, status=0 if fits else 2, mip_dual_bound=0.0
        )
        return empty, lambda bound: decided_value
    one_hot = sparse.csr_array(
        (np.ones(count), (rows, np.arange(count))), shape=(len(sites), count)
    )
    weights = sparse.csr_array(small.weights[sites[rows], choices].T)
    constraints = [LinearConstraint(one_hot, 1, 1)]
    if len(small.limits):
        constraints.append(LinearConstraint(weights, -np.inf, small.limits - margin - used))
    value = 1.0 if known.picks is None else small.value(known.picks)
    value = max(value - decided_value, 1e-9)
    relative, unit = accepted / value, 1e3 / value
    result = solve_binary(
        unit * small.values[sites[rows], choices],
        constraints,
        seconds=effort.seconds,
        gap=min(relative, 1e6),
        nodes=nodes,
    )
    return result, lambda bound: decided_value + (bound - 2 * TOLERANCE) / unit


def _read(small: Knapsack, solution: Floats) -> Ints:
    """Read the picks off a solution: the largest binary of each site, the first of equals."""
    picks: Ints = small.open.argmax(axis=1)
    sites = _undecided(small)
    if not len(sites):
        return picks
    table = np.full((len(sites), small.values.shape[1]), -1.0)
    table[small.open[sites]] = solution
    picks[sites] = table.argmax(axis=1)
    return picks
