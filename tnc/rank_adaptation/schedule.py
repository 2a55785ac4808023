"""What a schedule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tnc.decide.pipeline import schedules
from tnc.rank_adaptation.adapted import Adapted

__all__ = ["Schedule", "schedules"]


class Schedule(ABC):
    """How ranks change while a model trains. Concrete ones are frozen dataclasses of options.

    Around every step of the optimizer, `before_` sees the gradients and may change them, `after_`
    sees the new parameters and may change ranks. All of a schedule's memory between steps lies in
    `Adapted.memory` (saved) or in the parameters themselves; `Adapted.passing` is for one step.
    """

    @abstractmethod
    def refuses(self, work: Adapted) -> str:
        """Say why the method does not apply to a layer; empty when it does."""

    def begin_(self, work: Adapted) -> None:
        """Prepare one layer, before the first step. The function that it computes stays."""
        return None

    def before_(self, works: Sequence[Adapted], step: int) -> None:
        """Do what the method does between the backward pass and the step of the optimizer."""
        return None

    def after_(self, works: Sequence[Adapted], step: int) -> None:
        """Do what the method does after step number `step` of the optimizer, from 1."""
        return None

    def close_(self, works: Sequence[Adapted]) -> None:
        """Leave ordinary layers behind: remove hooks."""
        return None
