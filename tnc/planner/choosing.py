"""Choose among offers by the knapsack, in the terms of a spec: its limits, scope and messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Literal

from tnc.decide.allocation import Allocation, Choice, allocate, minimise_cost
from tnc.decide.target import Target
from tnc.errors import InfeasibleBudget, PlanError
from tnc.planner.budget import cost_vector, open_names
from tnc.planner.options import Option
from tnc.planner.task import FIXED, Allotment, Chosen, Offers, Task

Score = Callable[[Target, Option], float]


def choose(
    task: Task,
    how: str,
    offers: Offers | None = None,
    score: Score = lambda target, option: option.error,
    objective: Literal["sum", "max"] | None = None,
    bound: float | None = None,
) -> Allotment:
    """Return the choice of least total (or largest) score within the spec's budgets.

    `bound` is the largest total score, in its own unit, where the spec bounds the error. Raises
    InfeasibleBudget in terms of the whole scope.
    """
    offers = task.offers if offers is None else offers
    if task.fixed and not task.bounds_error:
        picks = [min(range(len(o)), key=lambda k: o[k].error) for _, o in offers]
        return Allotment(taken(offers, picks), FIXED)
    minimise = task.spec.budget.minimise if task.spec.budget and bound is not None else None
    budgets = open_names(task.budget.limits, minimise)
    if not budgets:
        raise PlanError(
            "nothing says how small the model must become",
            where="budget",
            hint="give a budget (params: 0.5), or `keep` or `ranks` in every rule",
        )
    choices = choices_of(task, offers, tuple(budgets), score)
    found: Allocation
    try:
        if bound is not None:
            assert minimise is not None
            kind = objective or task.spec.objective
            found = minimise_cost(choices, minimise, bound, budgets, objective=kind)
        else:
            found = allocate(choices, budgets, objective=objective or task.spec.objective)
    except InfeasibleBudget as error:
        if bound is not None:
            raise
        raise whole_scope(task, offers) from error
    remark = f"solver {found.solver}, gap {found.gap:.1g}"
    return Allotment(taken(offers, found.picks), how, remark)


def choices_of(
    task: Task, offers: Offers, names: tuple[str, ...], score: Score
) -> list[list[Choice]]:
    """Return offers for the solver: costs in the order of `names`."""
    return [
        [
            Choice(
                cost_vector(
                    option.cost(target),
                    task.seconds(target, option),
                    names,
                    task.budget.counts(target),
                ),
                score(target, option),
                place,
            )
            for place, option in enumerate(options)
        ]
        for target, options in offers
    ]


def taken(offers: Offers, picks: Sequence[int]) -> Chosen:
    """Return the picked options with their targets."""
    return tuple((target, options[pick]) for (target, options), pick in zip(offers, picks))


def whole_scope(task: Task, offers: Offers) -> InfeasibleBudget:
    """Say an infeasibility in the spec's terms: whole scope, with the tightest that is met."""
    budget, told = task.budget, []
    for name, limit in budget.limits.items():
        table = choices_of(task, offers, (name,), lambda target, option: 0.0)
        smallest = sum(min(choice.cost[0] for choice in row) for row in table) + budget.fixed[name]
        dense = budget.dense[name]
        share = f" ({ceil(smallest / dense * 1e4) / 1e4:.4f} of {_told(name, dense)})"
        told.append(
            f"{name} {_told(name, limit + budget.fixed[name])} is asked for, "
            f"{_told(name, budget.fixed[name])} lie outside of the rules, "
            f"the least that can be met is {_told(name, smallest)}{share if dense else ''}"
        )
    return InfeasibleBudget(
        "no plan meets the budget: " + "; ".join(told),
        where=f"budget, scope {budget.scope!r}",
        hint="raise the budget, let rules match more of the scope, or offer smaller structures"
        + ("" if len(told) == 1 else "; together the budgets may be tighter than each alone"),
    )


def _told(name: str, value: float) -> str:
    return f"{value * 1e6:,.1f} us" if name == "latency" else f"{value:,.0f}"
