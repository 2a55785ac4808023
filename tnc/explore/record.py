"""Records: what has been evaluated, by content."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from tnc.explore.evaluator import Array
from tnc.explore.trial import Outcome, Trial

Cores = tuple[Array, ...]


class Record(ABC):
    """Outcomes and fitted cores by the key of their trial. Only the coordinator writes."""

    @abstractmethod
    def outcome(self, key: str) -> Outcome | None:
        """Return what became of a trial, None when it was not evaluated."""

    @abstractmethod
    def cores(self, key: str) -> Cores | None:
        """Return the fitted cores of a trial, None when there are none."""

    @abstractmethod
    def write(self, trial: Trial, outcome: Outcome, cores: Cores | None) -> None:
        """Put one outcome on record, once and for all."""


@dataclass
class MemoryRecord(Record):
    """A record for the length of a process."""

    _outcomes: dict[str, Outcome] = field(default_factory=dict)
    _cores: dict[str, Cores] = field(default_factory=dict)

    def outcome(self, key: str) -> Outcome | None:
        return self._outcomes.get(key)

    def cores(self, key: str) -> Cores | None:
        return self._cores.get(key)

    def write(self, trial: Trial, outcome: Outcome, cores: Cores | None) -> None:
        self._outcomes.setdefault(trial.key, outcome)
        if cores is not None:
            self._cores.setdefault(trial.key, cores)
