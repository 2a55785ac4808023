"""Time many small operations against each other on a machine that does other things too.

Every point is read in several rounds over all points and its best reading counts, so that what
else runs disturbs a round and not a point. On one thread the process's CPU time is taken, else the
clock's; on CUDA the device's own, read when it has done all that it was given.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod

import torch

from tnc.errors import KernelError
from tnc.kernels.backend import using
from tnc.kernels.device import CPU, CUDA
from tnc.kernels.turns import Clock, Run, block, calls_in, clock

MOST_BYTES = 128 << 20
"""What the operands, and what the result of a timed operation may take."""
TURN = 200
PASSES = 2
ROUNDS = 8
"""The most readings of a point in one turn."""
BLOCK, CUDA_BLOCK = 30e-6, 400e-6
"""Seconds that one reading should take at least, as reading the clock costs some too."""
MOST_CALLS = 64

Report = Callable[[str, int, int], None]


@dataclass
class Point:
    """One operation to time; `best` is in seconds per call."""

    prepare: Callable[[], Run]
    backend: str = ""
    best: float = float("inf")
    calls: int = 1


class Room:
    """Memory that all operations share, so that none pays for pages of its own."""

    def __init__(self, dtype: torch.dtype, device: str = CPU) -> None:
        self.dtype, self.item, self.device = dtype, dtype.itemsize, torch_device(device)
        some = torch.rand(1 << 16, generator=torch.Generator().manual_seed(0))
        some = some.to(self.device, dtype)
        items = MOST_BYTES // self.item
        self._operands = some.repeat(items // some.numel())
        self._result = self._operands.clone()

    def operands(self, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
        """Return tensors of these shapes one after another, each from the start of a page on."""
        found, start, page = [], 0, 4096 // self.item
        for shape in shapes:
            found.append(self._operands[start : start + prod(shape)].view(shape))
            start += -(-prod(shape) // page) * page
        return found

    def result(self, shape: tuple[int, ...]) -> torch.Tensor:
        return self._result[: prod(shape)].view(shape)


def torch_device(device: str) -> str:
    """Return torch's type of a device. Raises KernelError where this machine has none."""
    if device == CPU:
        return CPU
    if not torch.cuda.is_available():
        raise KernelError(
            "nothing can be timed on CUDA here: torch finds no CUDA device",
            hint="without --device the CPU is timed",
        )
    return CUDA


def read_all(
    points: Sequence[Point],
    seconds_limit: float,
    report: Report = lambda stage, done, total: None,
    device: str = CPU,
) -> None:
    """Time all points in about this time; every one is read once at least.

    They are taken in turns of `TURN`: oneDNN keeps as many compiled products, and compiling one
    takes longer than most readings. All turns come twice, at different times.
    """
    now, seconds = clock(torch.get_num_threads(), device), BLOCK if device == CPU else CUDA_BLOCK
    ordered = sorted(points, key=lambda point: point.backend)
    turns = [ordered[start : start + TURN] for start in range(0, len(ordered), TURN)] * PASSES
    end = time.monotonic() + seconds_limit
    for number, turn in enumerate(turns):
        report("timing operations", number, len(turns))
        began = time.monotonic()
        _read_turn(turn, began + (end - began) / (len(turns) - number), now, seconds)


def _read_turn(turn: Sequence[Point], end: float, now: Clock, seconds: float) -> None:
    """Read the points of a turn in rounds until the end, a first round where any is unread."""
    for _ in range(ROUNDS):
        for point in turn:
            if point.best < float("inf") and time.monotonic() > end:
                return
            with using(point.backend) if point.backend else nullcontext():
                _read(point, now, seconds)


def _read(point: Point, now: Clock, seconds: float) -> None:
    """Take one reading of a point, after calls that compile and warm the caches."""
    run = point.prepare()
    run()
    if point.best == float("inf"):
        point.calls = _calls(block(run, 1, now), seconds)
    point.best = min(point.best, block(run, point.calls, now))
    point.calls = _calls(point.best, seconds)


def _calls(guess: float, seconds: float) -> int:
    return min(MOST_CALLS, calls_in(seconds, guess))


@contextmanager
def alone(threads: int) -> Iterator[None]:
    """Give torch this number of threads and no gradients, and stop the garbage collector."""
    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.disable()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()
