"""Solve the multiple-choice knapsack: dominance, Lagrangian, reduced costs, then HiGHS."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from tnc.decide.knapsack import Floats, Ints, Knapsack
from tnc.decide.lagrangian import solve_dual


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

    Dominated entries are closed; the Lagrangian gives a bound L and a selection of value U; an
    entry whose reduced cost exceeds U - L is in no better selection and is closed too; HiGHS
    solves what is left. None of the three loses an optimum.
    """
    small, offset, scale = knapsack.restrict(knapsack.undominated).scaled()
    dual = solve_dual(small)
    if dual.bound == np.inf:
        return Answer(None, np.inf, "lagrangian")
    known = Answer(dual.picks, dual.bound, "lagrangian")
    accepted = _accepted(known, small, offset, scale, effort)
    if effort.exact and (known.picks is None or small.value(known.picks) - known.bound > accepted):
        reduced = _close_by_reduced_cost(small, known, dual.multipliers)
        known = _program(reduced, known, accepted, effort)
    bound = offset + scale * known.bound
    if known.picks is not None:
        bound = min(bound, knapsack.value(known.picks))
    return replace(known, bound=bound)


def feasible(knapsack: Knapsack, effort: Effort) -> Answer:
    """Look for any selection within the limits, without caring for its value."""
    return solve(knapsack, replace(effort, gap=np.inf))


def _accepted(
    known: Answer, small: Knapsack, offset: float, scale: float, effort: Effort
) -> float:
    """Turn the relative gap of the true value into an absolute one of the scaled value."""
    if effort.gap == np.inf:
        return np.inf
    value = 1.0 if known.picks is None else small.value(known.picks)
    return max(1e-12, effort.gap * abs(offset + scale * value) / scale)


def _close_by_reduced_cost(small: Knapsack, known: Answer, multipliers: Floats) -> Knapsack:
    if known.picks is None:
        return small
    priced = small.values + small.weights @ multipliers
    reduced_cost = priced - priced.min(axis=1, keepdims=True)
    keep = reduced_cost <= small.value(known.picks) - known.bound + 1e-9
    keep[small.sites, known.picks] = True
    return small.restrict(keep)


def _program(small: Knapsack, known: Answer, accepted: float, effort: Effort) -> Answer:
    """Run HiGHS; on rounding beyond a limit tighten that limit a little and run again."""
    margin = np.zeros(len(small.limits))
    for _ in range(4):
        result = _milp(small, margin, known, accepted, effort)
        if result.x is None:
            return _without_solution(result, known, margin)
        if not margin.any() and result.mip_dual_bound is not None:
            floor = _value_of_decided(small)
            known = replace(known, bound=max(known.bound, floor + float(result.mip_dual_bound)))
        picks = _read(small, result.x)
        if small.fits(picks):
            if known.picks is None or small.value(picks) < small.value(known.picks) - 1e-15:
                return replace(known, picks=picks, solver="milp")
            return replace(known, solver="milp")
        excess = np.maximum(small.totals(picks) - small.limits, 0.0)
        margin = margin + 1.5 * excess
    return known


def _without_solution(result: OptimizeResult, known: Answer, margin: Floats) -> Answer:
    """Conclude from a program without a solution: proven infeasible (2), or out of time."""
    if result.status == 2 and known.picks is None and not margin.any():
        return Answer(None, np.inf, "milp")
    return known


def _undecided(small: Knapsack) -> Ints:
    return np.flatnonzero(small.open.sum(axis=1) > 1)


def _value_of_decided(small: Knapsack) -> float:
    decided = np.flatnonzero(small.open.sum(axis=1) == 1)
    return float(small.values[decided].min(axis=1, initial=np.inf).sum()) if len(decided) else 0.0


def _milp(
    small: Knapsack, margin: Floats, known: Answer, accepted: float, effort: Effort
) -> OptimizeResult:
    """Build the sparse program over the sites that still have a choice, and solve it."""
    sites = _undecided(small)
    decided = np.setdiff1d(small.sites, sites)
    used = small.weights[decided, small.open[decided].argmax(axis=1)].sum(axis=0)
    rows, choices = np.nonzero(small.open[sites])
    count = len(rows)
    if count == 0:
        fits = bool(np.all(used <= small.limits + 1e-9))
        return OptimizeResult(x=np.zeros(0) if fits else None, status=0 if fits else 2,
                              mip_dual_bound=0.0)
    one_hot = sparse.csr_array((np.ones(count), (rows, np.arange(count))),
                               shape=(len(sites), count))
    weights = sparse.csr_array(small.weights[sites[rows], choices].T)
    constraints = [LinearConstraint(one_hot, 1, 1)]
    if len(small.limits):
        constraints.append(LinearConstraint(weights, -np.inf, small.limits - margin - used))
    value = 1.0 if known.picks is None else small.value(known.picks)
    relative = accepted / max(value - _value_of_decided(small), 1e-9)
    return milp(
        small.values[sites[rows], choices],
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": effort.seconds, "mip_rel_gap": min(relative, 1e6)},
    )


def _read(small: Knapsack, solution: Floats) -> Ints:
    """Read the picks off a solution: the largest binary of each site, the first of equals."""
    picks = small.open.argmax(axis=1)
    sites = _undecided(small)
    if not len(sites):
        return picks
    table = np.full((len(sites), small.values.shape[1]), -1.0)
    table[small.open[sites]] = solution
    picks[sites] = table.argmax(axis=1)
    return picks
