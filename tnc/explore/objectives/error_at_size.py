"""The least error within a size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tnc.explore.objective import Objective, objectives


@objectives.register("error-at-size")
@dataclass(frozen=True)
class ErrorAtSize(Objective):
    """`rse` where `ratio <= most`; above it 1 plus the excess, so that searches find the way back.

    >>> ErrorAtSize(0.1).score({"ratio": 0.05, "rse": 0.01})
    0.01
    """

    most: float

    def score(self, metrics: Mapping[str, float]) -> float:
        over = metrics["ratio"] / self.most - 1
        return 1.0 + over if over > 0 else metrics["rse"]

    def rse_for(self, ratio: float, score: float) -> float:
        return score if ratio <= self.most else -1.0
