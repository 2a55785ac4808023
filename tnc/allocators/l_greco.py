"""A dynamic program over error buckets (L-GreCo)."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.decide.allocation.buckets import least_error
from tnc.errors import PlanError
from tnc.planner.choosing import choices_of, taken, whole_scope
from tnc.planner.task import Allocator, Allotment, Task, allocators, needs_costs


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
        picks = least_error(errors, costs, limit, self.buckets)
        return Allotment(taken(task.offers, picks), "l-greco", f"{self.buckets} buckets")
