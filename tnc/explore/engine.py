"""What an engine is; the registered ones are in `engines/`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tnc.explore.record import Cores
from tnc.explore.topology import Topology
from tnc.explore.trial import Outcome, Trial
from tnc.registry import Registry


@dataclass(frozen=True)
class Task:
    """One trial for a worker, with the cores it starts from and the topology that they are of."""

    trial: Trial
    start: Cores | None = None
    origin: Topology | None = None


Done = tuple[Outcome, Cores | None]
Work = Callable[[Task], Done]
"""A pure, picklable function: the same task gives the same answer in any process."""


class Engine(ABC):
    """A frozen dataclass whose fields are its options. Used as `with engine.open(work) as pool`."""

    @abstractmethod
    def open(self, work: Work) -> Pool:
        """Start workers that know `work`."""

    def check(self) -> None:  # noqa: B027 most need nothing
        """Raise MissingExtra where something that the engine needs is not installed."""


class Pool(ABC):
    """Workers that are running."""

    workers: int = 1

    @abstractmethod
    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Done]]:
        """Yield every task's number and answer, in the order of their ends.

        A task whose worker dies is given to another; one that kills several workers, or hangs, is
        answered by an outcome with an error. What the work raises is raised here: it stops the
        search, since the next candidate would fare no better.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop the workers."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


engines: Registry[type[Engine]] = Registry("engine", "tnc.explore.engines")


def threads(count: int) -> dict[str, str]:
    """Return the variables that bound the threads of a process, read when its libraries load."""
    names = ("OMP", "MKL", "OPENBLAS", "NUMBA", "VECLIB")
    last = {"VECLIB": "MAXIMUM_THREADS"}
    return {f"{name}_{last.get(name, 'NUM_THREADS')}": str(count) for name in names}


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
