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
    """An error made of the candidate and the seed, after `seconds`; some candidates misbehave.

    What their text has to hold: those of `hang` do not end, `nan` have no number for an error,
    `divide` and `mistake` raise, `die` kill their process: always, or with `once` until there is
    a file of that name. Every fit adds the candidate's key to the file `log`.
    """

    hang: str = ""
    nan: str = ""
    divide: str = ""
    mistake: str = ""
    die: str = ""
    once: str = ""
    log: str = ""
    seconds: float = 0.0

    def fit(self, tensor: Any, topology: Topology, **given: Any) -> Fit:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{topology.key}\n")
        for name in ("hang", "divide", "mistake", "die"):
            text = getattr(self, name)
            if text and text in str(topology):
                getattr(self, f"_{name}")()
        time.sleep(self.seconds)
        told = sha256(f"{topology} {given['seed']} {given.get('start')}".encode()).digest()
        cores = tuple(np.full(shape, given["seed"] % 97 / 97) for shape in topology.shapes)
        rse = int.from_bytes(told[:4]) / 2**32 / topology.parameters
        if self.nan and self.nan in str(topology):
            rse = float("nan")
        return Fit(rse, cores, {"starts": 1})

    def _hang(self) -> None:
        time.sleep(60)

    def _divide(self) -> None:
        raise ZeroDivisionError("by 0")

    def _mistake(self) -> None:
        raise KeyError("a mistake in the evaluator")

    def _die(self) -> None:
        if not self.once or not self._before():
            os.kill(os.getpid(), signal.SIGKILL)

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
