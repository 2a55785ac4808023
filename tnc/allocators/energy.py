"""The same share of spectral energy in every layer."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.planner.choosing import choose
from tnc.planner.task import Allocator, Allotment, Task, allocators, needs_costs


@allocators.register("energy")
@dataclass(frozen=True)
class Energy(Allocator):
    """Keep at least one share of every layer's energy, the largest that fits; each in the cheapest.

    Energy is the squared norm in the metric of the plan (the Frobenius norm with `metric: none`).
    """

    def refuses(self, task: Task) -> str:
        return needs_costs(task)

    def allot(self, task: Task) -> Allotment:
        return choose(task, "energy", score=lambda target, option: option.relative, objective="max")
