"""What an objective is; the registered ones are in `objectives/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from tnc.registry import Registry


class Objective(ABC):
    """A frozen dataclass whose fields are its options."""

    @abstractmethod
    def score(self, metrics: Mapping[str, float]) -> float:
        """Return the score of `metrics`: the smaller the better, `inf` where it makes no sense."""

    def rse_for(self, ratio: float, score: float) -> float:
        """Return the largest `rse` at which a candidate of size `ratio` scores below `score`.

        What lies above it cannot win: fits stop early and candidates whose lower bound is above
        it are never fitted. `inf` where the objective says nothing.
        """
        del ratio, score
        return float("inf")


objectives: Registry[type[Objective]] = Registry("objective", "tnc.explore.objectives")
