"""Whether measured times are to be trusted: the clock beside what processors did meanwhile."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

SHARE = 0.9
"""The share of a round that its thread has to be on a processor."""

MOST = 0.25
"""The share of rounds that may be disturbed before the median is."""

SPARE = 0.25
"""How much of a core other processes may take beyond what the timed threads leave to them."""

LEAST = 0.2
"""Seconds below which the counters of the system are too coarse to be asked."""


@dataclass
class Disturbance:
    """What came between rounds of work of `threads` threads, from its making on.

    A round is disturbed when its thread was on a processor for less than `SHARE` of the time: it
    was waiting for one, or for threads that were.
    """

    threads: int
    rounds: int = 0
    disturbed: int = 0
    seconds: float = 0.0
    _wall: float = field(default_factory=time.perf_counter)
    _own: float = field(default_factory=time.process_time)
    _all: float | None = field(default_factory=lambda: busy_seconds())

    def add(self, wall: float, processor: float) -> None:
        """Count a round: its seconds by the clock, and its thread's on a processor."""
        self.rounds += 1
        self.seconds += wall
        self.disturbed += processor < SHARE * wall

    def reason(self) -> str:
        """Say why medians of the rounds are unreliable; empty where nothing says so."""
        told = []
        usable = usable_cores()
        if self.threads > usable:
            told.append(f"{self.threads} threads shared {_cores(usable)}")
        if self.disturbed > MOST * self.rounds:
            told.append(
                f"the timed thread waited for a tenth of the time or more in {self.disturbed} of "
                f"{self.rounds} rounds"
            )
        others, cores = self._others(), os.cpu_count() or 1
        if others > max(0, cores - self.threads) + SPARE:
            told.append(
                f"other processes took {others:.1f} of {_cores(cores)} while {self.threads} "
                f"thread{'s' * (self.threads > 1)} ran"
            )
        return "; ".join(told)

    def _others(self) -> float:
        """Return how many cores other processes took on the average; 0 where it is not known."""
        now, wall = busy_seconds(), time.perf_counter() - self._wall
        if now is None or self._all is None or wall < LEAST:
            return 0.0
        return (now - self._all - (time.process_time() - self._own)) / wall


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_seconds(file: Path = Path("/proc/stat")) -> float | None:
    """Return the seconds that all cores were busy, or taken away, since the system's start.

    None where the system does not tell.
    """
    try:
        first = file.read_text(encoding="ascii").split("\n", 1)[0].split()
        user, nice, system, _, _, irq, soft, stolen = (int(value) for value in first[1:9])
        return (user + nice + system + irq + soft + stolen) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"
