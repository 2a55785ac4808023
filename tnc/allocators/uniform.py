"""The same share of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tnc.decide.candidates import Candidate, cost_of, name_of, template_of
from tnc.decide.target import Target
from tnc.errors import InfeasibleBudget
from tnc.planner.budget import cost_vector
from tnc.planner.options import Option, is_fixed
from tnc.planner.task import Allocator, Allotment, Chosen, Task, allocators, needs_costs


@allocators.register("uniform")
@dataclass(frozen=True)
class Uniform(Allocator):
    """Keep the same share of every layer, the largest that fits, in the rule's first structure.

    Ranks are not rounded, so that this is the recipe of the papers that do the same.
    """

    def refuses(self, task: Task) -> str:
        reason = needs_costs(task)
        return reason or ("cannot meet a latency" if "latency" in task.budget.limits else "")

    def allot(self, task: Task) -> Allotment:
        low, high, best = 0.0, 1.0, None
        for _ in range(30):
            middle = (low + high) / 2
            chosen = _at(task, middle)
            if chosen is None or _fits(task, chosen):
                low, best = middle, chosen or best
            else:
                high = middle
        if best is None:
            raise InfeasibleBudget(
                "no uniform share meets the budget",
                where="allocate",
                hint="raise the budget, or `allocate: surrogate`, which says what can be met",
            )
        return Allotment(best, "uniform", f"{low:.1%} of every layer")


def _at(task: Task, share: float) -> Chosen | None:
    chosen = []
    for target, options in task.offers:
        inside = task.budget.counts(target) and share < 1
        option = _option(target, options, share) if inside else options[0]
        if option is None:
            return None
        chosen.append((target, option))
    return tuple(chosen)


def _option(target: Target, options: Sequence[Option], share: float) -> Option | None:
    if is_fixed(target):
        return min(options, key=lambda option: option.error)
    family = target.rule.structure[0]
    template = template_of(family, target)
    ranks = template.within(int(share * target.signature.parameters))
    if ranks is None:
        return None
    structure = template.at(ranks)
    fit = family.fit if target.rule.fit == "auto" else target.rule.fit
    cost = cost_of(structure, target)
    candidate = Candidate(structure, name_of(family), fit, cost, float("nan"), False)
    return Option(candidate, float("nan"), float("nan"))


def _fits(task: Task, chosen: Chosen) -> bool:
    names = tuple(task.budget.limits)
    spent = [0.0] * len(names)
    for target, option in chosen:
        vector = cost_vector(option.cost(target), 0.0, names, task.budget.counts(target))
        spent = [have + more for have, more in zip(spent, vector)]
    return all(have <= task.budget.limits[name] for name, have in zip(names, spent))
