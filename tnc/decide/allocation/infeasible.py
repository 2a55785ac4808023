"""Say why no allocation fits: the tightest feasible value of each budget."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from tnc.decide.allocation.knapsack import Floats, Knapsack
from tnc.decide.allocation.solve import Answer, Effort, solve
from tnc.errors import InfeasibleBudget, PlanError, TncError


def explain(knapsack: Knapsack, names: tuple[str, ...], effort: Effort, answer: Answer) -> TncError:
    """Make the error for a knapsack without a selection.

    Names the smallest sets of budgets that no allocation meets together and, for each budget, the
    least value that is feasible with the others as they are. A search that ran out of time without
    a proof is a PlanError instead.
    """
    if answer.bound != np.inf:
        return PlanError(
            "no allocation was found within the time limit, and none was ruled out",
            where=_budgets(names, knapsack.limits),
            hint="raise the time limit or the budgets",
        )
    clashes = _clashes(knapsack, names, effort)
    hints = [_tightest(knapsack, names, row, effort) for row in range(len(names))]
    reason = " and ".join(" with ".join(clash) for clash in clashes)
    return InfeasibleBudget(
        f"no allocation meets {reason}",
        where=_budgets(names, knapsack.limits),
        hint="; ".join(hints),
    )


def explain_error_bound(errors: Floats, site: int, bound: float) -> InfeasibleBudget:
    """Make the error for a bound on the largest error that a site cannot meet."""
    tightest = float(errors.min(axis=1).max())
    return InfeasibleBudget(
        f"no candidate has an error of {bound:.9g} or less",
        where=f"site {site}, whose least error is {errors[site].min():.9g}",
        hint=f"error at least {tightest:.9g} is feasible for every site, budgets aside",
    )


def _budgets(names: tuple[str, ...], limits: Floats) -> str:
    return "budgets " + ", ".join(f"{n} <= {x:.9g}" for n, x in zip(names, limits))


def _clashes(
    knapsack: Knapsack, names: tuple[str, ...], effort: Effort
) -> tuple[tuple[str, ...], ...]:
    """Give the smallest sets of budgets that cannot be met together."""
    rows = range(len(names))
    for size in range(1, len(names)):
        found = [
            rows_
            for rows_ in combinations(rows, size)
            if _least(knapsack, rows_[0], rows_[1:], effort)[0]
            > knapsack.limits[rows_[0]] + knapsack.rounding[rows_[0]]
        ]
        if found:
            return tuple(tuple(_limit(knapsack, names, row) for row in rows_) for rows_ in found)
    return (tuple(_limit(knapsack, names, row) for row in rows),)


def _limit(knapsack: Knapsack, names: tuple[str, ...], row: int) -> str:
    return f"{names[row]} <= {knapsack.limits[row]:.9g}"


def _tightest(knapsack: Knapsack, names: tuple[str, ...], row: int, effort: Effort) -> str:
    """Name the least value of one budget, the others kept; alone where they clash themselves."""
    others = tuple(other for other in range(len(names)) if other != row)
    least, proven = _least(knapsack, row, others, effort)
    kept = ", ".join(names[other] for other in others)
    if np.isfinite(least):
        about = "" if proven else "about "
        return f"{names[row]} at least {about}{least:.9g}" + (f" with {kept} kept" if kept else "")
    alone, _ = _least(knapsack, row, (), effort)
    return f"{names[row]} at least {alone:.9g} once {kept} can be met"


def _least(
    knapsack: Knapsack, row: int, others: tuple[int, ...], effort: Effort
) -> tuple[float, bool]:
    """Minimise one row within some others: its least value (inf: none), and whether it is exact."""
    values = np.where(knapsack.open, knapsack.weights[:, :, row], np.inf)
    if not others:
        return float(values.min(axis=1).sum()), True
    index = list(others)
    single = Knapsack(values, knapsack.weights[:, :, index], knapsack.limits[index])
    answer = solve(single, Effort(gap=0.0, seconds=effort.seconds))
    if answer.picks is None:
        return np.inf, answer.infeasible
    value = single.value(answer.picks)
    return value, value - answer.bound <= 1e-6 * abs(value)
