"""Alternating least squares for any topology."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from tnc.explore.evaluator import Array, Evaluator, Fit, evaluators
from tnc.explore.topology import Topology

_MOST = 1 << 27
"""Entries of the memory of a fit: 1 GiB."""


@evaluators.register("als")
@dataclass(frozen=True)
class ALS(Evaluator):
    """One core after another solves its least squares; the best of `starts` random ones.

    Every start makes `race` sweeps; the best goes on to `sweeps`, then those whose error was within
    `factor` of its. A start ends when a sweep gains less than `gain` of the error.
    """

    version = 2
    starts: int = 3
    sweeps: int = 100
    race: int = 10
    factor: float = 2.0
    gain: float = 1e-4

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
        from tnc.explore.alternating import plan, sweeps

        norm = float(np.square(tensor).sum())
        shapes = topology.shapes
        if norm == 0.0 or len(shapes) == 1:
            cores = (np.array(tensor),) if len(shapes) == 1 else map(np.zeros, shapes)
            return Fit(0.0, tuple(cores), {"sweeps": 0, "starts": 1})
        rng = np.random.default_rng(seed)
        drawn = [rng.standard_normal(topology.parameters) for _ in range(self.starts)]
        if start is not None:
            drawn.insert(0, np.concatenate([core.reshape(-1) for core in start]))
        begun = np.stack(drawn)
        modes = np.array([*topology.modes, *[1] * topology.hidden], dtype=np.int64)
        bonds = np.array(topology.bonds, dtype=np.int64).reshape(-1, 3)
        steps, tables, marks, order, places, back = plan.plan(modes, bonds)
        if marks[3] > _MOST:
            raise MemoryError(f"{topology} needs {8 * marks[3] / 2**30:.1f} GiB to be fitted")
        turned = tensor.transpose(order[order < tensor.ndim]).reshape(-1)
        most = max(1, round(self.sweeps * effort))
        cores, rse, swept = sweeps.fit(
            turned, begun, steps, tables, marks, order, places, back, norm,
            most, self.race, self.gain, max(enough, 1e-13), self.factor,
        )  # fmt: skip
        ends = np.cumsum([prod(shape) for shape in shapes])[:-1]
        parts = [part.reshape(shape) for part, shape in zip(np.split(cores, ends), shapes)]
        return Fit(float(rse), tuple(parts), {"sweeps": int(swept), "starts": len(begun)})
