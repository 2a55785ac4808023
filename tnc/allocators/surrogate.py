"""The knapsack on predicted errors."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.errors import PlanError
from tnc.planner.choosing import choose
from tnc.planner.task import Allocator, Allotment, Task, allocators


@allocators.register("surrogate")
@dataclass(frozen=True)
class Surrogate(Allocator):
    """Minimise the sum (or maximum) of predicted errors raised to `power`.

    A power below one evens the errors out: it corrects for layers whose errors add up and saturate.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise PlanError(f"surrogate: power is {self.power}", hint="it must be above 0")

    def refuses(self, task: Task) -> str:
        return ""

    def allot(self, task: Task) -> Allotment:
        name = "knapsack" if self.power == 1 else f"knapsack on errors^{self.power:g}"
        bound = task.spec.budget.error if task.spec.budget else None
        return choose(
            task,
            name,
            score=lambda target, option: option.error**self.power,
            bound=None if bound is None else bound**self.power,
        )
