"""The least size within an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tnc.explore.objective import Objective, objectives


@objectives.register("size-at-error")
@dataclass(frozen=True)
class SizeAtError(Objective):
    """`ratio` where `rse <= most`; above it 10 plus the excess error, so that searches go on.

    >>> SizeAtError(0.01).score({"ratio": 0.05, "rse": 0.002})
    0.05
    """

    most: float

    def score(self, metrics: Mapping[str, float]) -> float:
        over = metrics["rse"] - self.most
        return 10.0 + over if over > 0 else metrics["ratio"]

    def rse_for(self, ratio: float, score: float) -> float:
        return self.most if ratio < score else -1.0
