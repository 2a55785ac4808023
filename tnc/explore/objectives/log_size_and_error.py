"""The logarithmic form of size and error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10

from tnc.explore.objective import Objective, objectives


@objectives.register("log-size-and-error")
@dataclass(frozen=True)
class LogSizeAndError(Objective):
    """`log10(ratio) + weight * rse`: minus the log compression ratio that papers report."""

    weight: float = 5.0

    def score(self, metrics: Mapping[str, float]) -> float:
        return log10(metrics["ratio"]) + self.weight * metrics["rse"]

    def rse_for(self, ratio: float, score: float) -> float:
        return (score - log10(ratio)) / self.weight
