"""Alternating least squares for any topology."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tnc.explore.evaluator import Array, Evaluator, Fit, evaluators
from tnc.explore.topology import Topology


@evaluators.register("als")
@dataclass(frozen=True)
class ALS(Evaluator):
    """One core after another solves its least squares; the best of `starts` random ones.

    Every start makes `race` sweeps; the best goes on to `sweeps`, then those whose error was within
    `factor` of its. A start ends when ten sweeps gain less than `gain` of the error. Between sweeps
    all cores go on by up to `reach` times what the last one changed, and back where that failed.
    """

    version = 2
    starts: int = 5
    sweeps: int = 300
    race: int = 10
    factor: float = 2.0
    gain: float = 1e-3
    reach: float = 1.0

    def warm(self) -> None:
        self.fit(np.eye(2), Topology.of((2, 2), [(0, 1, 2)]), seed=0, effort=1e-9)

    def fit(
        self,
        tensor: Array,
        topology: Topology,
        *,
        seed: int,
        effort: float = 1.0,
        start: tuple[Array, ...] | None = None,
        enough: float = 0.0,
    ) -> Fit:
        from tnc.explore.alternating.bench import Bench, trivial

        known = trivial(tensor, topology)
        if known is not None:
            return known
        bench = Bench.of(tensor, topology)
        drawn = bench.starts(self.starts, seed, start)
        most = max(1, round(self.sweeps * effort))
        race = min(self.race, most)
        errors, swept = np.full(len(drawn), np.inf), 0
        for k, cores in enumerate(drawn):
            errors[k], made = bench.descend(cores, race, enough, self.gain, self.reach)
            swept += made
            if errors[k] <= enough:
                break
        bound = self.factor * errors.min()
        for k in np.argsort(errors, kind="stable"):
            if errors.min() <= enough or errors[k] > bound or most == race:
                break
            errors[k], made = bench.descend(drawn[k], most - race, enough, self.gain, self.reach)
            swept += made
        return bench.fit(drawn[int(errors.argmin())], sweeps=swept, starts=len(drawn))
