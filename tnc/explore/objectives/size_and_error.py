"""The objective of TnALE and its relatives: size ratio plus weighted squared relative error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tnc.explore.objective import Objective, objectives


@objectives.register("size-and-error")
@dataclass(frozen=True)
class SizeAndError(Objective):
    """`F = ratio + weight * rse` (Li et al., TnALE, ICML 2023, equation 1, as in their code).

    `weight` is 200 in their ring searches and 5 in their graph searches.

    >>> SizeAndError(200.0).score({"ratio": 0.5, "rse": 0.001})
    0.7
    """

    weight: float = 200.0

    def score(self, metrics: Mapping[str, float]) -> float:
        return metrics["ratio"] + self.weight * metrics["rse"]

    def rse_for(self, ratio: float, score: float) -> float:
        return (score - ratio) / self.weight
