"""Alternating least squares for any topology."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from tnc.explore.evaluator import Array, Evaluator, Fit, evaluators
from tnc.explore.topology import Topology

_MOST = 1 << 27
"""Entries of the memory of a fit: 1 GiB."""
_EXACT = 1e-13


@evaluators.register("als")
@dataclass(frozen=True)
class ALS(Evaluator):
    """One core after another solves its least squares; the best of `starts` random ones.

    Every start makes `race` sweeps; the best goes on to `sweeps`, then those whose error was within
    `factor` of its. A start ends when ten sweeps gain less than `gain` of the error.
    """

    version = 2
    starts: int = 5
    sweeps: int = 300
    race: int = 10
    factor: float = 2.0
    gain: float = 1e-3
    reach: float = 1.0

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
        modes = np.array([*topology.modes, *[1] * topology.hidden], dtype=np.int64)
        bonds = np.array(topology.bonds, dtype=np.int64).reshape(-1, 3)
        steps, tables, marks, order, places, back = plan.plan(modes, bonds)
        if marks[3] > _MOST:
            raise MemoryError(f"{topology} needs {8 * marks[3] / 2**30:.1f} GiB to be fitted")
        room = np.zeros(marks[3])
        room[: tensor.size] = tensor.transpose(order[order < tensor.ndim]).reshape(-1)
        most = max(1, round(self.sweeps * effort))
        enough = max(enough, _EXACT)
        swept = 0

        def descend(cores: Array, count: int) -> float:
            nonlocal swept
            error, made = sweeps.descend(
                room, steps, tables, marks, order, places, norm, cores,
                count, enough, self.gain, self.reach,
            )  # fmt: skip
            swept += made
            return float(error)

        errors = np.full(len(drawn), np.inf)
        for k, cores in enumerate(drawn):
            errors[k] = descend(cores, min(self.race, most))
            if errors[k] <= enough:
                break
        bound = self.factor * errors.min()
        for k in np.argsort(errors, kind="stable"):
            if errors.min() <= enough or errors[k] > bound or most <= self.race:
                break
            errors[k] = descend(drawn[k], most - self.race)
        best = drawn[int(errors.argmin())]
        rse = sweeps.rebuilt(room, steps, tables, marks, places, back, norm, best)
        ends = np.cumsum([prod(shape) for shape in shapes])[:-1]
        parts = [part.reshape(shape) for part, shape in zip(np.split(best, ends), shapes)]
        return Fit(float(rse), tuple(parts), {"sweeps": float(swept), "starts": len(drawn)})
