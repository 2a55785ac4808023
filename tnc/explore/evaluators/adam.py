"""The reference evaluator of the papers: Adam from small random cores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tnc.explore.evaluator import Array, Evaluator, Fit, evaluators, rse
from tnc.explore.topology import Topology


@evaluators.register("adam")
@dataclass(frozen=True)
class Adam(Evaluator):
    """Adam on all cores at once, as in the authors' code of TnALE (Li et al., ICML 2023).

    `starts` from cores N(0, scale^2), `steps` of size `rate`, in float32, ended at an error of
    `exact`. They take 40,000 steps of 1e-2 in their searches of graphs.
    """

    starts: int = 2
    steps: int = 10_000
    rate: float = 1e-3
    scale: float = 0.1
    exact: float = 1e-8
    dtype: str = "float32"

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
        bench = Bench.of(tensor, topology, self.dtype)
        goal = bench.room[: tensor.size].copy()
        drawn = bench.starts(self.starts, seed, start, self.scale)
        enough = max(enough, self.exact)
        most = max(1, round(self.steps * effort))
        errors, steps = np.full(len(drawn), np.inf), 0
        for k, cores in enumerate(drawn):
            errors[k], made = bench.follow(goal, cores, most, enough, self.rate)
            steps += made
            if errors[k] <= enough:
                break
        found = bench.cores(drawn[int(errors.argmin())])
        counts = {"steps": float(steps), "starts": float(len(drawn))}
        return Fit(rse(tensor, found, topology), found, counts)
