"""What an allocator is, what it gets and what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from tnc.capture.batches import some_of
from tnc.decide.pipeline import allocators
from tnc.decide.spec import Spec
from tnc.decide.target import Target
from tnc.planner.budget import Budget
from tnc.planner.options import Option, is_fixed
from tnc.planner.trial import Evaluator, Trial
from tnc.rewrite.subject import Subject

__all__ = ["Allocator", "Allotment", "Chosen", "Offers", "Task", "allocators"]

Chosen = tuple[tuple[Target, Option], ...]
Offers = Sequence[tuple[Target, Sequence[Option]]]
Progress = Callable[[str, int, int], None]
Visits = Callable[[Sequence[Target]], Iterator[tuple[Subject, Sequence[Target]]]]
"""Goes through targets in groups, each with a subject that has their weights and figures."""

FIXED = "fixed by the spec"


@dataclass(frozen=True)
class Allotment:
    """A complete choice with the name of what made it and a remark for the plan."""

    chosen: Chosen
    how: str
    remark: str = ""


@dataclass(frozen=True)
class Task:
    """Everything that an allocator may look at; `notes` go into the plan.

    `offers` holds the options of every target with errors in the plan's unit, staying dense first;
    `seconds` is the measured time of an option. `batches` are for trials on the model; there are
    none where there is no evaluation or no data.
    """

    subject: Subject
    spec: Spec
    offers: Offers
    budget: Budget
    seconds: Callable[[Target, Option], float]
    visits: Visits
    batches: Sequence[Any] = ()
    evaluation: Evaluator | None = None
    progress: Progress | None = None
    notes: list[str] = field(default_factory=list)

    def told(self, what: str, done: int, total: int) -> None:
        """Report progress."""
        if self.progress:
            self.progress(what, done, total)

    def trial(self, samples: int) -> tuple[Trial, str]:
        """Return a trial on about `samples` samples, and in words which.

        They are of the batches that were held back, where any were: the trial's fits then use the
        figures without them. What the plan promises and what is carried out uses all batches.
        """
        assert self.evaluation is not None
        measured = self.subject.measurements
        if measured is None or measured.without is None:
            seen = "" if measured is None else ", which its fits have seen (too few to hold back)"
            chosen = some_of(self.batches, samples)
            return Trial(self.subject, chosen, self.evaluation, self.spec), (
                f"{len(chosen)} calibration batches{seen}"
            )
        chosen = some_of([self.batches[number] for number in measured.held], samples)
        subject = replace(self.subject, measurements=measured.without)
        return Trial(subject, chosen, self.evaluation, self.spec), (
            f"{len(chosen)} calibration batches held back from its fits"
        )

    @property
    def bounds_error(self) -> bool:
        """Whether the spec bounds the error instead of a cost."""
        return self.spec.budget is not None and self.spec.budget.error is not None

    @property
    def fixed(self) -> bool:
        """Whether nothing is left to choose."""
        return not self.budget.limits and all(is_fixed(target) for target, _ in self.offers)


class Allocator(ABC):
    """A way to choose one option for every target. Concrete ones are frozen dataclasses."""

    needs_model: ClassVar[bool] = False
    """Whether it tries options on the whole model, if it can on batches held back for that; where
    there is no whole model, `surrogate` takes its place."""

    @abstractmethod
    def refuses(self, task: Task) -> str:
        """Say why the method cannot answer the spec's budget; empty when it can."""

    @abstractmethod
    def allot(self, task: Task) -> Allotment:
        """Choose. Raises InfeasibleBudget with the tightest budget that can be met.

        An option that is not among the offers has the error NaN and a candidate that is not exact:
        it is fitted, and its error told, once everything is chosen.
        """


def needs_costs(task: Task, most: int | None = None) -> str:
    """Say why a method that fills budgets of costs does not apply; empty when it does."""
    if task.bounds_error:
        return "cannot meet a bound on the error: it fills budgets"
    if not task.budget.limits:
        return "needs a budget"
    if most is not None and len(task.budget.limits) > most:
        return f"fills {most} budget, not {', '.join(task.budget.limits)} at once"
    return ""
