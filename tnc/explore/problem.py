"""A search problem: the space, the objective, and what is known before the first fit."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.explore.axes import Point
from tnc.explore.bounds import Spectra
from tnc.explore.objective import Objective
from tnc.explore.space import Space
from tnc.explore.topology import Topology
from tnc.explore.trial import Outcome, Scored, Trial


@dataclass(frozen=True)
class Problem:
    """What every strategy is given. `spectra` is None where the target is no single tensor."""

    space: Space
    objective: Objective
    spectra: Spectra | None = None

    def trial(self, point: Point, effort: float = 1.0, start: str = "") -> Trial:
        """Return the trial at a point."""
        return Trial(point, self.space.topology(point), effort, start)

    def scored(self, trial: Trial, outcome: Outcome) -> Scored:
        """Return a trial with its score."""
        score = self.objective.score(outcome.metrics) if outcome.ok else float("inf")
        return Scored(trial, outcome, score if score == score else float("inf"))

    def floor(self, topology: Topology) -> float:
        """Return a score that no fit of a topology can be below; minus infinity when unknown."""
        if self.spectra is None:
            return float("-inf")
        rse = self.spectra.floor(topology)
        return self.objective.score(
            {"ratio": topology.ratio, "rse": rse, "params": topology.parameters}
        )
