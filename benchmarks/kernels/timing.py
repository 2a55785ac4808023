"""Interleaved timing of several sides: blocks of calls in turn, so that noise meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median

import torch

BLOCK = 0.03
"""Seconds of one side in one block, or one call where that is longer."""
BLOCKS = 5
SLOW = 0.25
"""Seconds of a call from which a side gets three blocks of the five."""

PRECISION = {"mkl": "highest", "onednn": "medium"}
"""The switch that sends float32 products to torch's default library, or to oneDNN."""

Times = dict[str, list[float | None]]
"""Seconds of one call by side and block; None where a slow side sat a block out."""


@dataclass(frozen=True)
class Side:
    """Hold one contender: what it calls, and the library of torch's products meanwhile.

    `held` also holds the choice that the structured layer makes itself to that library.
    """

    name: str
    call: Callable[[], object]
    backend: str = "mkl"
    held: bool = False


try:  # the layer's own choice of libraries, held to one
    from tnc.kernels.backend import only as _only  # type: ignore[import-not-found]

    HELD = True
except ImportError:
    HELD = False


@contextmanager
def library(backend: str, held: bool = False) -> Iterator[None]:
    """Send torch's float32 products to one library for a while, and the layer's where `held`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISION[backend])
    try:
        with _only(backend) if held and HELD else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def clock(threads: int) -> Callable[[], float]:
    """Return the clock: the process's CPU time for one thread, wall time for more."""
    return time.process_time if threads == 1 else time.perf_counter


def probe(side: Side, now: Callable[[], float]) -> float:
    """Return roughly the seconds of one call, warm; the side must have been called before."""
    calls = []
    with library(side.backend, side.held):
        while len(calls) < 6 and sum(calls) < BLOCK:
            started = now()
            side.call()
            calls.append(now() - started)
    return max(min(calls), 1e-7)


def interleaved(sides: Sequence[Side], guesses: Sequence[float], now: Callable[[], float]) -> Times:
    """Time all sides in blocks, starting each block with another one."""
    times: Times = {side.name: [] for side in sides}
    pairs = list(zip(sides, guesses))
    for block in range(BLOCKS):
        start = block % len(pairs)
        for side, guess in pairs[start:] + pairs[:start]:
            if guess > SLOW and block % 2:
                times[side.name].append(None)
                continue
            times[side.name].append(_block(side, guess, now))
    return times


def _block(side: Side, guess: float, now: Callable[[], float]) -> float:
    repeats, call = max(1, round(BLOCK / guess)), side.call
    with library(side.backend, side.held):
        if repeats > 1:
            call()
        started = now()
        for _ in range(repeats):
            call()
        return (now() - started) / repeats


def typical(times: Times, name: str) -> float:
    """Return the median seconds of a side."""
    return median(t for t in times[name] if t is not None)


def median_ratio(times: Times, over: str, under: str) -> float:
    """Return the median over blocks of one side's seconds by another's."""
    pairs = zip(times[over], times[under])
    return median(a / b for a, b in pairs if a is not None and b is not None)
