"""The whole model as one knapsack: one choice per site, under named budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan
from typing import Literal, get_args

import numpy as np

from tnc.decide.allocation.infeasible import explain, explain_error_bound
from tnc.decide.allocation.knapsack import Floats, from_choices
from tnc.decide.allocation.solve import Answer, Effort, solve
from tnc.decide.allocation.threshold import cheapest_under, smallest_threshold
from tnc.errors import PlanError

Objective = Literal["sum", "max"]

EFFORT = Effort()
"""What is tried when nothing else is said: a gap of 1e-4, 10 seconds per program."""


@dataclass(frozen=True)
class Choice:
    """Hold one candidate of one site.

    `cost`: one number per budget, in the order of the budgets; `error`: predicted error, already
    weighted; `tag`: whatever the caller recognises it by.
    """

    cost: tuple[float, ...]
    error: float
    tag: object = None


@dataclass(frozen=True)
class Allocation:
    """Hold one choice per site and what is known about its quality.

    `picks`: the index of the choice of each site; `error`: sum or maximum of their errors;
    `costs`: their totals per budget; `bound`: no allocation has a smaller objective (the error,
    or the cost where that was minimised); `gap`: (objective - bound) / |objective|; `solver`:
    what settled it: trivial, lagrangian, milp or threshold.
    """

    picks: tuple[int, ...]
    error: float
    costs: tuple[float, ...]
    bound: float
    gap: float
    solver: str


def allocate(
    sites: Sequence[Sequence[Choice]],
    budgets: Mapping[str, float],
    *,
    objective: Objective = "sum",
    effort: Effort = EFFORT,
) -> Allocation:
    """Choose one candidate per site: least error within every budget.

    min sum_s error(s, x_s)  or  min max_s error(s, x_s)
    subject to  sum_s cost(s, x_s)[m] <= budgets[m] for every m

    `budgets` names the entries of each `Choice.cost`, in order; `inf` leaves one open. With "max"
    the cheapest allocation of that maximum is given (the sum of cost / budget counts). A choice
    that another of its site matches in error and cost, or beats, is never picked (of equals the
    first stays), and of equal sites the first gets the lowest index. Raises PlanError for lists
    that do not fit together, InfeasibleBudget with the tightest feasible value of each budget.
    Method: multiple-choice knapsack, Kellerer et al., Knapsack Problems, ch. 11; HiGHS.

    >>> site = [Choice((10.0,), 0.0), Choice((4.0,), 1.0), Choice((2.0,), 3.0)]
    >>> found = allocate([site, site], {"params": 8})
    >>> found.picks, found.error, found.costs
    ((1, 1), 2.0, (8.0,))
    """
    _check(sites, tuple(budgets), tuple(budgets.values()), objective)
    if not sites:
        return _trivial(len(budgets))
    names, rows = _limited(budgets)
    errors, costs = _errors(sites), [[[c.cost[r] for r in rows] for c in site] for site in sites]
    knapsack = from_choices(errors, costs, [budgets[name] for name in names])
    if objective == "max":
        answer = smallest_threshold(knapsack, effort)
    else:
        answer = solve(knapsack, effort)
    if answer.picks is None:
        raise explain(knapsack, names, effort, answer)
    return _allocation(sites, answer, objective, len(budgets), None)


def minimise_cost(
    sites: Sequence[Sequence[Choice]],
    cost: str,
    error_bound: float,
    budgets: Mapping[str, float],
    *,
    objective: Objective = "sum",
    effort: Effort = EFFORT,
) -> Allocation:
    """Choose one candidate per site: least cost within an error bound (and the other budgets).

    min sum_s cost(s, x_s)[cost]
    subject to  sum_s error(s, x_s) <= error_bound  or  max_s error(s, x_s) <= error_bound

    `budgets` names all entries of `Choice.cost`, in order, `inf` where there is no limit; `cost`
    is one of them. `Allocation.bound` and `.gap` are of the cost. Raises as `allocate`.

    >>> site = [Choice((10.0,), 0.0), Choice((4.0,), 1.0), Choice((2.0,), 3.0)]
    >>> minimise_cost([site, site], "params", 4.0, {"params": float("inf")}).picks
    (1, 2)
    """
    _check(sites, tuple(budgets), (*budgets.values(), error_bound), objective)
    if cost not in budgets:
        raise PlanError(
            f"no cost is named {cost!r}",
            where=f"budgets {tuple(budgets)}",
            hint="minimise one of the named costs",
        )
    if not sites:
        return _trivial(len(budgets))
    target = tuple(budgets).index(cost)
    names, rows = _limited(budgets)
    limits = [budgets[name] for name in names]
    weights = [[[c.cost[r] for r in rows] for c in site] for site in sites]
    if objective == "sum" and error_bound < inf:
        names, limits = (*names, "error"), [*limits, error_bound]
        weights = [[[*w, c.error] for w, c in zip(row, site)] for row, site in zip(weights, sites)]
    knapsack = from_choices([[c.cost[target] for c in site] for site in sites], weights, limits)
    if objective == "max":
        knapsack = cheapest_under(knapsack, _error_table(sites, error_bound), error_bound)
    answer = solve(knapsack, effort)
    if answer.picks is None:
        raise explain(knapsack, names, effort, answer)
    return _allocation(sites, answer, objective, len(budgets), target)


def _error_table(sites: Sequence[Sequence[Choice]], bound: float) -> Floats:
    """Give the errors, (sites, choices); refuse a bound that some site cannot meet."""
    errors = from_choices(_errors(sites), [], []).values
    over = np.flatnonzero(errors.min(axis=1) > bound)
    if len(over):
        raise explain_error_bound(errors, int(over[0]), bound)
    return errors


def _errors(sites: Sequence[Sequence[Choice]]) -> list[list[float]]:
    return [[choice.error for choice in site] for site in sites]


def _limited(budgets: Mapping[str, float]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Give the names and positions of the budgets that are finite."""
    kept = [(name, row) for row, (name, limit) in enumerate(budgets.items()) if limit < inf]
    return tuple(name for name, _ in kept), tuple(row for _, row in kept)


def _trivial(rows: int) -> Allocation:
    return Allocation((), 0.0, (0.0,) * rows, 0.0, 0.0, "trivial")


def _allocation(
    sites: Sequence[Sequence[Choice]],
    answer: Answer,
    objective: Objective,
    rows: int,
    target: int | None,
) -> Allocation:
    """Read costs and error off the caller's own numbers; the gap is of what was minimised."""
    assert answer.picks is not None
    picks = tuple(int(pick) for pick in answer.picks)
    chosen = [site[pick] for site, pick in zip(sites, picks)]
    errors = [choice.error for choice in chosen]
    error = float(sum(errors) if objective == "sum" else max(errors))
    costs = tuple(float(sum(choice.cost[row] for choice in chosen)) for row in range(rows))
    reached = error if target is None else costs[target]
    bound = min(answer.bound, reached)
    gap = (reached - bound) / abs(reached) if reached > bound and reached else 0.0
    return Allocation(picks, error, costs, bound, gap, answer.solver)


def _check(
    sites: Sequence[Sequence[Choice]],
    names: tuple[str, ...],
    limits: tuple[float, ...],
    objective: str,
) -> None:
    if objective not in get_args(Objective):
        raise PlanError(
            f"objective {objective!r} is not known", where="allocation", hint="use 'sum' or 'max'"
        )
    if any(isnan(limit) or limit == -inf for limit in limits):
        raise PlanError(
            f"limits {limits} are not all numbers",
            where=f"budgets {names}",
            hint="give a number, or inf for no limit",
        )
    for index, site in enumerate(sites):
        where = f"site {index}"
        if not site:
            raise PlanError(
                "a site has no candidate", where=where, hint="keeping it dense is always one"
            )
        for position, choice in enumerate(site):
            if len(choice.cost) != len(names):
                raise PlanError(
                    f"candidate {position} has {len(choice.cost)} costs for {len(names)} budgets",
                    where=where,
                    hint=f"give one cost for each of {names}",
                )
            if not isfinite(choice.error) or not all(map(isfinite, choice.cost)):
                raise PlanError(
                    f"candidate {position} has a cost or error that is not finite",
                    where=where,
                    hint="leave candidates that cannot be used out",
                )
