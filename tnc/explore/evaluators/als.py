"""Alternating least squares for any topology."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tnc.explore.evaluator import Array, Evaluator, Fit, evaluators
from tnc.explore.topology import Topology


@evaluators.register("als")
@dataclass(frozen=True)
class ALS(Evaluator):
    """One core after another solves its least squares; the best of `starts` random ones.

    A start ends after `sweeps` or when a sweep gains less than `gain` of the error.
    """

    starts: int = 3
    sweeps: int = 100
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
        rng = np.random.default_rng(seed)
        begun = [] if start is None else [list(start)]
        begun += [
            [
                rng.standard_normal(shape) / np.sqrt(prod(shape[1:]) or 1)
                for shape in topology.shapes
            ]
            for _ in range(self.starts)
        ]
        best, swept = Fit(float("inf"), ()), 0
        for cores in begun:
            last = float("inf")
            for _ in range(max(1, round(self.sweeps * effort))):
                swept += 1
                error = _sweep(tensor, cores, topology)
                if error <= max(enough, 1e-13) or last - error <= self.gain * error:
                    last = min(last, error)
                    break
                last = error
            if last < best.rse:
                best = Fit(last, tuple(cores))
            if best.rse <= max(enough, 1e-13):
                break
        return Fit(best.rse, best.cores, {"sweeps": swept, "starts": len(begun)})


def _sweep(tensor: Array, cores: list[Array], topology: Topology) -> float:
    order = len(topology.modes)
    norm = float(np.square(tensor).sum()) or 1.0
    error = float("inf")
    for v, legs in enumerate(topology.legs):
        operands: list[Any] = []
        for other, held in enumerate(topology.legs):
            if other != v:
                mode = [other] if other < order else []
                operands += [cores[other], [*mode, *(order + k for k in held)]]
        modes = [k for k in range(order) if k != v]
        outer = [order + k for k in legs] + modes
        rest = np.einsum(*operands, outer, optimize="greedy") if operands else np.ones(())
        rest = rest.reshape(int(prod(rest.shape[: len(legs)])), -1)
        if v < order:
            goal = np.moveaxis(tensor, v, 0).reshape(topology.modes[v], -1)
            solved = np.linalg.lstsq(rest.T, goal.T, rcond=1e-12)[0].T
            error = float(np.square(goal - solved @ rest).sum()) / norm
        else:
            solved = np.linalg.lstsq(rest.T, tensor.reshape(-1), rcond=1e-12)[0]
            error = float(np.square(tensor.reshape(-1) - solved @ rest).sum()) / norm
        cores[v] = solved.reshape(topology.shapes[v])
    return error
