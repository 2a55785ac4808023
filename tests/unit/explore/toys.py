"""Evaluators that cost nothing, and ones that misbehave on one candidate. Importable by workers."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tnc.explore import Evaluator, Fit, FitTopology, Space, Task, Topology, Trial, evaluators

SPACE = Space.of((3, 3, 3, 3), "ring", rank=3)


@evaluators.register("toy")
@dataclass(frozen=True)
class Toy(Evaluator):
    """An error made of the candidate and the seed; a candidate with `bad` in its text misbehaves.

    `how` it does: it hangs, answers NaN, raises, kills its process always or, with a file at
    `once`, the first time only. Every fit takes `seconds`.
    """

    bad: str = ""
    how: str = ""
    once: str = ""
    seconds: float = 0.0

    def fit(self, tensor: Any, topology: Topology, **given: Any) -> Fit:
        if self.bad and self.bad in str(topology):
            if self.how == "hang":
                time.sleep(60)
            elif self.how == "nan":
                return Fit(float("nan"), ())
            elif self.how == "raise":
                raise KeyError("a mistake in the evaluator")
            elif self.how == "divide":
                raise ZeroDivisionError("by 0")
            elif self.how == "die" or (self.how == "die once" and not self._before()):
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        told = sha256(f"{topology} {given['seed']} {given.get('start')}".encode()).digest()
        cores = tuple(np.full(shape, given["seed"] % 97 / 97) for shape in topology.shapes)
        return Fit(int.from_bytes(told[:4]) / 2**32 / topology.parameters, cores, {"starts": 1})

    def _before(self) -> bool:
        before = Path(self.once).exists()
        Path(self.once).touch()
        return before


def work(**options: Any) -> FitTopology:
    """The work of a search with toys."""
    return FitTopology(np.arange(81.0).reshape(3, 3, 3, 3), Toy(**options), None, seed=5)


def tasks(count: int = 60, step: int = 1) -> list[Task]:
    """Tasks of different topologies."""
    found: dict[str, Task] = {}
    for point in SPACE.all():
        topology = SPACE.topology(point)
        found.setdefault(topology.key, Task(Trial(point, topology)))
    return list(found.values())[: count * step : step]


def answers(pool: Any, given: list[Task]) -> list[tuple[dict[str, float], str, list[Any]]]:
    """What a pool answers, in the order of the tasks: metrics, errors, cores."""
    found: dict[int, Any] = {}
    for number, (outcome, cores) in pool.run(given):
        assert number not in found, "answered twice"
        found[number] = (
            dict(outcome.metrics),
            outcome.error,
            [core.tolist() for core in cores or ()],
        )
    return [found[number] for number in range(len(given))]
