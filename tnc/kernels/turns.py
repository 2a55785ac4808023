"""Time runs beside each other: blocks of calls in turns, so that noise meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

from tnc.kernels.device import CPU

LEAST = 1e-9
"""Seconds that no call is faster than: clocks step."""
PROBES = 6

Run = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Turns:
    """How long and how often runs take turns: seconds a block, or one call where that is longer.

    Runs of more than `slow` seconds sit out every other block.
    """

    seconds: float
    blocks: int = 5
    slow: float = float("inf")


def clock(threads: int, device: str = CPU) -> Clock:
    """Return the clock: the process's CPU time for one thread, the wall's for more.

    On CUDA the device's own, read when it has done all that it was given.
    """
    if device != CPU:
        return _Events()
    return time.process_time if threads == 1 else time.perf_counter


class _Events:
    """A clock of the device: seconds between events that it meets when all before them is done."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last = self._met()

    def __call__(self) -> float:
        event = self._met()
        self._seconds += 1e-3 * self._last.elapsed_time(event)
        self._last = event
        return self._seconds

    def _met(self) -> Any:
        import torch

        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()
        return event


def block(run: Run, calls: int, now: Clock) -> float:
    """Return the seconds of one call in a block of so many."""
    each = range(calls)
    started = now()
    for _ in each:
        run()
    return max(LEAST, (now() - started) / calls)


def probe(run: Run, now: Clock, seconds: float) -> float:
    """Return roughly the seconds of a run that is warm: the best of a few calls."""
    calls: list[float] = []
    while len(calls) < PROBES and sum(calls) < seconds:
        calls.append(block(run, 1, now))
    return min(calls)


def calls_in(seconds: float, guess: float) -> int:
    """Return how many calls fill a block."""
    return max(1, round(seconds / max(guess, LEAST)))


def interleaved(
    runs: Sequence[Run],
    guesses: Sequence[float],
    now: Clock,
    turns: Turns,
    around: Callable[[int], AbstractContextManager[object]] = lambda _: nullcontext(),
) -> list[list[float | None]]:
    """Time all runs in blocks, each round starting with another run; None where one sat out.

    `guesses` are their rough seconds, `around` makes what holds while a run has its turn.
    """
    found: list[list[float | None]] = [[] for _ in runs]
    places = list(range(len(runs)))
    for number in range(turns.blocks):
        start = number % len(places)
        for place in places[start:] + places[:start]:
            if guesses[place] > turns.slow and number % 2:
                found[place].append(None)
                continue
            calls = calls_in(turns.seconds, guesses[place])
            with around(place):
                if calls > 1:
                    runs[place]()
                found[place].append(block(runs[place], calls, now))
    return found


def typical(times: Sequence[float | None]) -> float:
    """Return the median seconds of a run over its blocks."""
    return median(t for t in times if t is not None)


def fastest(
    runs: Sequence[Run],
    now: Clock,
    turns: Turns,
    most: int,
    calls: int = 3,
    always: Container[int] = (),
) -> dict[int, float]:
    """Return the typical seconds of runs by their place, timed in turns.

    Those that the best of a few first `calls` puts behind the `most` fastest sit out, unless their
    places are in `always`.
    """
    guesses = [min(block(run, 1, now) for _ in range(calls)) for run in runs]
    order = sorted(range(len(runs)), key=guesses.__getitem__)
    order = [place for rank, place in enumerate(order) if rank < most or place in always]
    times = interleaved([runs[place] for place in order], [guesses[n] for n in order], now, turns)
    return {place: typical(own) for place, own in zip(order, times)}
