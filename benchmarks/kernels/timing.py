"""Interleaved timing of several sides: blocks of calls in turn, so that noise meets all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median

import torch

from tnc.kernels import turns
from tnc.kernels.backend import only
from tnc.kernels.device import CUBLAS
from tnc.kernels.turns import Clock, Turns

TURNS = Turns(seconds=0.03, slow=0.25)

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


@contextmanager
def library(backend: str, held: bool = False) -> Iterator[None]:
    """Send torch's float32 products to one library for a while, and the layer's where `held`.

    On CUDA there is one, and nothing to be switched.
    """
    if backend == CUBLAS:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISION[backend])
    try:
        with only(backend) if held else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def probe(side: Side, now: Clock) -> float:
    """Return roughly the seconds of one call, warm; the side must have been called before."""
    with library(side.backend, side.held):
        return turns.probe(side.call, now, TURNS.seconds)


def interleaved(sides: Sequence[Side], guesses: Sequence[float], now: Clock) -> Times:
    """Time all sides in blocks, starting each block with another one."""
    found = turns.interleaved(
        [side.call for side in sides],
        guesses,
        now,
        TURNS,
        lambda place: library(sides[place].backend, sides[place].held),
    )
    return {side.name: times for side, times in zip(sides, found)}


def typical(times: Times, name: str) -> float:
    """Return the median seconds of a side."""
    return turns.typical(times[name])


def median_ratio(times: Times, over: str, under: str) -> float:
    """Return the median over blocks of one side's seconds by another's."""
    pairs = zip(times[over], times[under])
    return median(a / b for a, b in pairs if a is not None and b is not None)
