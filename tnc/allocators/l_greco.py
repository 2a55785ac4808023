"""A dynamic program over error buckets (L-GreCo)."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.decide.allocation.buckets import cheapest_by_error
from tnc.errors import PlanError
from tnc.planner.choosing import choices_of, taken, whole_scope
from tnc.planner.task import Allocator, Allotment, Task, allocators, needs_costs

ROUNDS = 6
"""How often the buckets are made finer, over the errors up to the best that was found."""


@allocators.register("l-greco")
@dataclass(frozen=True)
class LGreCo(Allocator):
    """Find the least error at which the cheapest choice meets the budget (Alimohammadi et al.).

    A table holds the least cost by layer and error bucket, errors rounded up. The paper sets the
    total error by the default ranks; here the smallest bucket that meets the budget is read off,
    and the range is cut into finer `buckets` while that lowers the error. One budget at a time.
    """

    buckets: int = 10_000

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise PlanError(f"l-greco: buckets is {self.buckets}", hint="it must be 1 or more")

    def refuses(self, task: Task) -> str:
        return needs_costs(task, most=1)

    def allot(self, task: Task) -> Allotment:
        ((name, limit),) = task.budget.limits.items()
        choices = choices_of(task, task.offers, (name,), lambda target, option: option.error)
        costs = [[choice.cost[0] for choice in row] for row in choices]
        errors = [[choice.error for choice in row] for row in choices]
        if sum(map(min, costs)) > limit:
            raise whole_scope(task, task.offers)
        margin = 1 + (len(errors) + 1) / self.buckets
        total = sum(max(row) for row in errors)
        picks, best = cheapest_by_error(errors, costs, limit, margin * total, self.buckets)
        for _ in range(ROUNDS):
            finer, found = cheapest_by_error(errors, costs, limit, margin * best, self.buckets)
            if found >= best:
                break
            picks, best = finer, found
        return Allotment(taken(task.offers, picks), "l-greco", f"{self.buckets} buckets")
