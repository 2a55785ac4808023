"""Several allocators, and the model itself decides."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.decide.options import build
from tnc.errors import InfeasibleBudget, PlanError
from tnc.planner.task import FIXED, Allocator, Allotment, Task, allocators

SHORTLIST = (
    "surrogate",
    "surrogate{power=0.75}",
    "surrogate{power=0.5}",
    "uniform",
)


@allocators.register("measured")
@dataclass(frozen=True)
class Measured(Allocator):
    """Try what each allocator of the `shortlist` chooses on the model, and keep the best.

    The figure is the mean distance of the evaluation over `samples` calibration samples, with fits
    to the moments of other batches where there are enough to hold a quarter back. Without
    calibration data and an evaluation the first of the list decides.
    """

    shortlist: tuple[str, ...] = SHORTLIST
    samples: int = 192

    needs_model = True

    def __post_init__(self) -> None:
        if not self.shortlist or self.samples < 1:
            raise PlanError("measured: the shortlist and the samples must not be empty")
        for text in self.shortlist:
            if text.startswith("measured"):
                raise PlanError("measured: its shortlist must not hold itself")
            _built(text)

    def refuses(self, task: Task) -> str:
        return _built(self.shortlist[0]).refuses(task)

    def allot(self, task: Task) -> Allotment:
        first = _built(self.shortlist[0]).allot(task)
        if first.how == FIXED:
            return first
        if task.evaluation is None or not task.batches:
            task.notes.append(
                f"allocate: measured fell back to {self.shortlist[0]}: "
                "it needs calibration data and an evaluation"
            )
            return first
        lists = self._shortlist(task, first)
        if len(lists) == 1:
            return first
        trial, on = task.trial(self.samples)
        scored = []
        for number, allotment in enumerate(lists):
            task.told("rescoring on the model", number, len(lists))
            scored.append((float(f"{trial.figure(allotment.chosen):.4g}"), number, allotment))
        told = ", ".join(f"{allotment.how} {figure:.4g}" for figure, _, allotment in scored)
        task.notes.append(f"rescored on the model, mean distance on {on}: {told}")
        return min(scored, key=lambda item: item[:2])[2]

    def _shortlist(self, task: Task, first: Allotment) -> tuple[Allotment, ...]:
        """Return what the allocators choose, each choice once."""
        unique = {_key(first): first}
        for text in self.shortlist[1:]:
            allocator = _built(text)
            reason = allocator.refuses(task)
            try:
                found = None if reason else allocator.allot(task)
            except InfeasibleBudget as error:
                found, reason = None, error.message
            if found is None:
                task.notes.append(f"{text} is not on the shortlist: it {reason}")
            else:
                unique.setdefault(_key(found), found)
        return tuple(unique.values())


def _built(text: str) -> Allocator:
    found: Allocator = build(allocators, text)
    return found


def _key(allotment: Allotment) -> str:
    return "|".join(str(o.candidate.structure if o.candidate else "") for _, o in allotment.chosen)
