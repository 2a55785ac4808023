"""The work of a search on one tensor: fit a topology, give its numbers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import isfinite

import numpy as np

from tnc.explore.bounds import Spectra
from tnc.explore.carrying import carried
from tnc.explore.engine import Done, Task
from tnc.explore.evaluator import Array, Evaluator
from tnc.explore.gating import gated
from tnc.explore.trial import Outcome


@dataclass(frozen=True)
class FitTopology:
    """`Task -> (Outcome, cores)`: pure and picklable, with the tensor and its spectra inside."""

    tensor: Array
    evaluator: Evaluator
    spectra: Spectra | None = None
    seed: int = 0
    slack: float = 1e-3
    """A fit within this share of its lower bound is as good as it gets."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that an outcome depends on besides its trial; records go by it."""
        told = (
            digest_of(self.tensor),
            f"{self.evaluator!r} {self.evaluator.version}",
            f"seed={self.seed} slack={self.slack!r}",
            f"cuts={len(self.spectra.cuts) if self.spectra else 0}",
        )
        return sha256("\n".join(told).encode()).hexdigest()

    def warm(self) -> None:
        """Get ready in this process; the first on a machine may have to compile."""
        self.evaluator.warm()

    def __call__(self, task: Task) -> Done:
        begun = time.perf_counter()
        trial = task.trial
        floor = self.spectra.floor(trial.topology) if self.spectra else 0.0
        seed = seed_of(self.seed, trial.key)
        start = task.start
        if start is not None and task.origin is not None:
            start = carried(start, task.origin, trial.topology, seed)
        try:
            if trial.gates:
                fit = gated(self.tensor, trial.topology, trial.gates, seed, trial.effort)
            else:
                fit = self.evaluator.fit(
                    self.tensor,
                    trial.topology,
                    seed=seed,
                    effort=trial.effort,
                    start=start,
                    enough=floor * (1 + self.slack),
                )
        except (ArithmeticError, np.linalg.LinAlgError, MemoryError) as error:
            return Outcome(error=f"{type(error).__name__}: {error}"), None
        seconds = time.perf_counter() - begun
        if not isfinite(fit.rse):
            return Outcome(error=f"the error of the fit is {fit.rse}", seconds=seconds), None
        metrics = {
            "rse": fit.rse,
            "ratio": trial.topology.ratio,
            "params": float(trial.topology.parameters),
            **fit.counts,
        }
        return Outcome(metrics, seconds=seconds), fit.cores


def digest_of(tensor: Array) -> str:
    """Return the SHA-256 of a tensor's shape and entries (float64, C order)."""
    entries = np.ascontiguousarray(tensor, dtype=np.float64)
    return sha256(f"{entries.shape} ".encode() + entries.tobytes()).hexdigest()


def seed_of(seed: int, key: str) -> int:
    """Return the seed of one fit: from the run's seed and what is fitted, not from when."""
    return int.from_bytes(sha256(f"{seed} {key}".encode()).digest()[:8], "little")
