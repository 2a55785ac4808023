"""Allocation: one option for every target, within the budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

from tnc.decide.allocation import Choice, allocate, minimise_cost
from tnc.decide.candidates import Candidate, cost_of, name_of, template_of
from tnc.decide.spec import Spec
from tnc.decide.target import Target
from tnc.errors import InfeasibleBudget, PlanError
from tnc.planner.budget import Budget, cost_vector, open_names
from tnc.planner.options import Option, is_fixed

Chosen = tuple[tuple[Target, Option], ...]
Offers = Sequence[tuple[Target, Sequence[Option]]]


@dataclass(frozen=True)
class Allotment:
    """A complete choice with the name of what made it and a remark for the plan."""

    chosen: Chosen
    how: str
    remark: str = ""


def by_knapsack(
    offers: Offers,
    budget: Budget,
    spec: Spec,
    seconds: Callable[[Target, Option], float],
    power: float = 1.0,
    name: str = "knapsack",
) -> Allotment:
    """Choose by the multiple-choice knapsack on errors raised to `power`.

    A power below one evens the errors out: it corrects for layers whose errors add up and saturate.
    """
    bound = spec.budget.error if spec.budget else None
    minimise = spec.budget.minimise if spec.budget and bound is not None else None
    budgets = open_names(budget.limits, minimise)
    names = tuple(budgets)
    choices = [
        [
            Choice(
                cost_vector(
                    option.cost(target), seconds(target, option), names, budget.counts(target)
                ),
                option.error**power,
                place,
            )
            for place, option in enumerate(options)
        ]
        for target, options in offers
    ]
    if bound is not None:
        assert minimise is not None
        found = minimise_cost(choices, minimise, bound**power, budgets, objective=spec.objective)
    elif not budgets and all(is_fixed(target) for target, _ in offers):
        picks = tuple(min(range(len(o)), key=lambda k: o[k].error) for _, o in offers)
        return Allotment(_take(offers, picks), "fixed by the spec")
    elif not budgets:
        raise PlanError(
            "nothing says how small the model must become",
            where="budget",
            hint="give a budget (params: 0.5), or `keep` or `ranks` in every rule",
        )
    else:
        try:
            found = allocate(choices, budgets, objective=spec.objective)
        except InfeasibleBudget as error:
            raise _whole_scope(offers, budget, seconds) from error
    remark = f"solver {found.solver}, gap {found.gap:.1g}"
    return Allotment(_take(offers, found.picks), name, remark)


def uniform(offers: Offers, budget: Budget) -> Allotment | None:
    """Keep the same share of every layer, the largest that fits; None where none fits.

    Ranks are not rounded, so that this is the recipe of the papers that do the same.
    """

    def at(share: float) -> Chosen | None:
        chosen = []
        for target, options in offers:
            inside = budget.counts(target) and share < 1
            option = _at_share(target, options, share) if inside else options[0]
            if option is None:
                return None
            chosen.append((target, option))
        return tuple(chosen)

    def fits(chosen: Chosen) -> bool:
        spent = dict.fromkeys(budget.limits, 0.0)
        for target, option in chosen:
            vector = cost_vector(option.cost(target), 0.0, tuple(spent), budget.counts(target))
            for name, value in zip(tuple(spent), vector):
                spent[name] += value
        return all(spent[name] <= limit for name, limit in budget.limits.items())

    low, high, best = 0.0, 1.0, None
    for _ in range(30):
        middle = (low + high) / 2
        chosen = at(middle)
        if chosen is None or fits(chosen):
            low, best = middle, chosen or best
        else:
            high = middle
    return Allotment(best, "uniform", f"{low:.1%} of every layer") if best else None


def _at_share(target: Target, options: Sequence[Option], share: float) -> Option | None:
    if is_fixed(target):
        return min(options, key=lambda option: option.error)
    family = target.rule.structure[0]
    template = template_of(family, target)
    ranks = template.within(int(share * target.signature.parameters))
    if ranks is None:
        return None
    structure = template.at(ranks)
    fit = family.fit_for(target.signature) if target.rule.fit == "auto" else target.rule.fit
    cost = cost_of(structure, target)
    candidate = Candidate(structure, name_of(family), fit, cost, float("nan"), False)
    return Option(candidate, float("nan"), float("nan"))


def shortlist(
    offers: Offers, budget: Budget, spec: Spec, seconds: Callable[[Target, Option], float]
) -> tuple[Allotment, ...]:
    """Return allocations worth rescoring on the model: several knapsacks, and uniform."""
    run = partial(by_knapsack, offers, budget, spec, seconds)
    found = [run(1.0, "knapsack")]
    if found[0].how == "fixed by the spec":
        return tuple(found)
    found += [run(power, f"knapsack on errors^{power}") for power in (0.75, 0.5)]
    even = uniform(offers, budget) if "latency" not in budget.limits else None
    if even is not None and (spec.budget is None or spec.budget.error is None):
        found.append(even)
    unique: dict[str, Allotment] = {}
    for one in found:
        key = "|".join(str(o.candidate.structure if o.candidate else "") for _, o in one.chosen)
        unique.setdefault(key, one)
    return tuple(unique.values())


def _take(offers: Offers, picks: Sequence[int]) -> Chosen:
    return tuple((target, options[pick]) for (target, options), pick in zip(offers, picks))


def _whole_scope(
    offers: Offers, budget: Budget, seconds: Callable[[Target, Option], float]
) -> InfeasibleBudget:
    """Say an infeasibility in the spec's terms: whole scope, with the tightest that is met."""
    told = []
    for name, limit in budget.limits.items():
        least = sum(
            min(
                cost_vector(
                    option.cost(target), seconds(target, option), (name,), budget.counts(target)
                )[0]
                for option in options
            )
            for target, options in offers
        )
        fixed, dense = budget.fixed[name], budget.dense[name]
        smallest = least + fixed
        share = f" ({ceil(smallest / dense * 1e4) / 1e4:.4f} of {_told(name, dense)})"
        told.append(
            f"{name} {_told(name, limit + fixed)} is asked for, "
            f"{_told(name, fixed)} lie outside of the rules, "
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
