"""Alternating least squares for any topology."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tnc.explore.evaluator import Array, Evaluator, Fit, evaluators
from tnc.explore.topology import Topology

_LARGE = 1_000_000


@evaluators.register("als")
@dataclass(frozen=True)
class ALS(Evaluator):
    """One core after another solves its least squares; the best of `starts` random ones.

    Starts after the first `few` are left out where a sweep takes more than a million multiply-adds.
    The first is annealed, as are all of the large: over `anneal` sweeps a ridge falls, which mends
    most of the bad minima. A start ends after `sweeps` or when ten of them gain less than `gain` of
    the error. Between sweeps all cores go on by up to `reach` times what the last one changed, and
    back where that failed. `effort` below 1 takes that share of the starts and of the sweeps.
    """

    version = 5
    starts: int = 4
    few: int = 2
    sweeps: int = 300
    anneal: int = 25
    stir: float = 1e-2
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
        from tnc.explore.alternating.bench import EXACT, Bench, trivial

        known = trivial(tensor, topology)
        if known is not None:
            return known
        bench = Bench.of(tensor, topology)
        large = bench.work > _LARGE
        count = round(effort * (min(self.few, self.starts) if large else self.starts))
        drawn = bench.starts(max(count, int(start is None)), seed, start)
        most = max(1, round(self.sweeps * effort))
        anneal = min(self.anneal, most // 2)
        best, least, swept = drawn[0].copy(), np.inf, 0
        if start is not None:
            least = bench.rse(best)
        for k, cores in enumerate(drawn):
            if least <= max(enough, EXACT):
                break
            left = most
            if anneal and (large or k == int(start is not None)) and not (start and k == 0):
                left -= bench.descend(
                    cores, min(anneal + 10, most), anneal, self.stir, enough, 0.0, self.reach
                )
                bench.level(cores)
            left -= bench.descend(cores, left, 0, 0.0, enough, self.gain, self.reach)
            swept += most - left
            error = bench.rse(cores)
            if error < least:
                best, least = cores, error
        counts = {"sweeps": float(swept), "starts": float(len(drawn))}
        return Fit(least, bench.cores(best), counts)
