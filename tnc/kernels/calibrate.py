"""Measure what operations cost on this machine: `tnc doctor --calibrate`.

Every point is timed in several rounds over all points, and its best round counts, so that what
else runs on the machine disturbs a round and not a point. On one thread the process's CPU time is
taken, else the clock's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from math import prod
from typing import Any

import torch

from tnc.kernels.backend import probes, torch_dtype, using
from tnc.kernels.machine import KINDS, VERSION, _threads, fingerprint

SIZES = (1, 2, 4, 16, 64, 256, 1024, 4096)
SMALL = (1, 4, 16, 64, 256)
BATCHES = (4, 16, 64, 256, 1024)
AXES = {
    "mm": (SIZES, SIZES, SIZES),
    "bmm": (BATCHES, SMALL, SMALL, SMALL),
    "shared": (BATCHES, SMALL, SMALL, SMALL),
}
MOST_FLOPS = {"mm": 3e8, "bmm": 4e7, "shared": 4e7}
"""Larger products are not measured: their rate is that of the largest ones that are."""
MOST_SECONDS = 4e-3
"""Nor are products of a dtype without fast ones that would take longer."""
MOST_BYTES = 96 << 20
COPIED = tuple(4**power << 10 for power in range(1, 9))
"""Bytes of copies: 4 KiB to 64 MiB."""
STREAMED = (128 << 10, 512 << 10, 2 << 20, 8 << 20, 24 << 20, 96 << 20, 256 << 20)
FRESH = (64 << 10, 1 << 20, 8 << 20, 31 << 20, 33 << 20, 128 << 20)
BLOCK = 30e-6
"""Seconds that one reading should take, as clocks and calls to them cost some too."""
ROUNDS = 12
LEAST = 1e-9

Run = Callable[[], object]


@dataclass
class Point:
    """One operation to time; `best` is in seconds per call."""

    run: Callable[[], Run]
    backend: str = ""
    best: float = float("inf")
    calls: int = field(default=1)


def calibrate(
    dtype: str = "float32",
    threads: int | None = None,
    seconds_limit: float = 20.0,
    report: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Measure this machine's table as plain data, for `machine.store` and `machine.from_data`.

    Takes about `seconds_limit`: one round over all points at least, more while time is left.
    """
    kind, threads = torch_dtype(dtype), threads or _threads()
    found = probes(dtype)
    trusted = [probe.backend for probe in found if not probe.refused]
    with _alone(threads), torch.no_grad():
        room = torch.ones((MOST_BYTES * 3) // kind.itemsize, dtype=kind)
        grids = {
            (backend, name): _products(room, backend, name) for backend in trusted for name in KINDS
        }
        copies = [Point(_copy(room, *at)) for at in product(COPIED, _runs(kind.itemsize))]
        streams = [Point(_stream(room, size)) for size in STREAMED]
        fresh = [Point(_written(room, size, new)) for size in FRESH for new in (True, False)]
        lines = [Point(_line(room, number)) for number in range(3)]
        points = [each for grid in grids.values() for each in grid if each is not None]
        _time([*points, *copies, *streams, *fresh, *lines], seconds_limit, threads, report)
    start = min(point.best for point in copies)
    return {
        "version": VERSION,
        "key": fingerprint(dtype, threads),
        "dtype": dtype,
        "threads": threads,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "statement": _short(sum(point.best for point in lines) / len(lines)),
        "backends": {
            probe.backend: {"error": None if probe.error != probe.error else _short(probe.error)}
            | {"refused": probe.refused}
            | ({} if probe.refused else _library(probe.backend, grids))
            for probe in found
        },
        "copy": _table((COPIED, _runs(kind.itemsize)), copies),
        "fresh": {
            "axes": [FRESH],
            "values": [
                _short(max(LEAST, new.best - used.best))
                for new, used in zip(fresh[::2], fresh[1::2], strict=True)
            ],
        },
        "bandwidth": {
            "axes": [STREAMED],
            "values": [
                _short(size / max(point.best - start, LEAST))
                for size, point in zip(STREAMED, streams, strict=True)
            ],
        },
    }


def _library(backend: str, grids: dict[tuple[str, str], list[Point | None]]) -> dict[str, Any]:
    peak = 0.0
    for kind in KINDS:
        for sizes, point in zip(product(*AXES[kind]), grids[backend, kind], strict=True):
            if point is not None:
                peak = max(peak, 2 * prod(sizes) / point.best)
    return {"peak": _short(peak)} | {
        kind: _table(AXES[kind], grids[backend, kind]) for kind in KINDS
    }


def _table(axes: tuple[tuple[int, ...], ...], points: Any) -> dict[str, Any]:
    """Return the seconds of a grid; its overhead is the least of them."""
    best = [None if point is None else point.best for point in points]
    return {
        "overhead": _short(min(value for value in best if value is not None)),
        "axes": axes,
        "values": [None if value is None else _short(value) for value in best],
    }


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _products(room: torch.Tensor, backend: str, kind: str) -> list[Point | None]:
    """Return the products to time on a grid, None for the points that would take too long."""
    points: list[Point | None] = []
    most = min(MOST_FLOPS[kind], MOST_SECONDS * _rate(room, backend))
    for sizes in product(*AXES[kind]):
        batch, m, n, k = (1, *sizes) if kind == "mm" else sizes
        items = m * k * (1 if kind == "shared" else batch) + batch * (k * n + m * n)
        small = 2 * prod(sizes) <= most and items * room.itemsize <= MOST_BYTES
        points.append(Point(_product(room, kind, batch, (m, n, k)), backend) if small else None)
    return points


def _rate(room: torch.Tensor, backend: str, size: int = 192) -> float:
    """Return the FLOP/s of a square product, roughly."""
    point = Point(_product(room, "mm", 1, (size, size, size)))
    with using(backend):
        for _ in range(3):
            _read(point, time.perf_counter)
    return 2 * size**3 / point.best


def _product(
    room: torch.Tensor, kind: str, batch: int, sizes: tuple[int, int, int]
) -> Callable[[], Run]:
    m, n, k = sizes

    def prepare() -> Run:
        if kind == "mm":
            left, right, out = _pieces(room, (m, k), (k, n), (m, n))
            return lambda: torch.mm(left, right, out=out)
        one = (1, m, k) if kind == "shared" else (batch, m, k)
        left, right, out = _pieces(room, one, (batch, k, n), (batch, m, n))
        if kind == "bmm":
            return lambda: torch.bmm(left, right, out=out)
        return lambda: torch.bmm(left.expand(batch, m, k), right, out=out)

    return prepare


def _copy(room: torch.Tensor, size: int, run: int) -> Callable[[], Run]:
    """Return a copy of `size` bytes in another order of dims, `run` of them contiguous."""

    def prepare() -> Run:
        inner, blocks = min(run, size) // room.itemsize, max(1, size // run)
        low = 1 << (blocks.bit_length() - 1) // 2
        if run > room.itemsize:
            shape, order = (low, blocks // low, inner), (1, 0, 2)
        else:
            half = 1 << (low.bit_length() - 1) // 2
            shape, order = (half, low // half, blocks // low), (2, 1, 0)
        source, target = _pieces(room, shape, shape)
        seen = source.permute(order)
        out = target.view(seen.shape)
        return lambda: out.copy_(seen)

    return prepare


def _runs(item: int) -> tuple[int, ...]:
    return tuple(item * 4**power for power in range(8))


def _stream(room: torch.Tensor, size: int) -> Callable[[], Run]:
    def prepare() -> Run:
        half = size // 2 // room.itemsize
        source, target = _pieces(room, (half,), (half,))
        return lambda: target.copy_(source)

    return prepare


def _written(room: torch.Tensor, size: int, new: bool) -> Callable[[], Run]:
    def prepare() -> Run:
        (target,) = _pieces(room, (size // room.itemsize,))
        if not new:
            return lambda: target.fill_(1)
        return lambda: torch.empty(target.shape, dtype=target.dtype).fill_(1)

    return prepare


def _line(room: torch.Tensor, number: int) -> Callable[[], Run]:
    def prepare() -> Run:
        (matrix,) = _pieces(room, (64, 64))
        lines: tuple[Run, ...] = (
            lambda: matrix.view(16, 4, 64),
            lambda: matrix[8:16],
            lambda: matrix.t(),
        )
        return lines[number]

    return prepare


def _pieces(room: torch.Tensor, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Return tensors of these shapes, one after another in the room, each on a page of its own."""
    found, start, page = [], 0, 4096 // room.itemsize
    for shape in shapes:
        found.append(room[start : start + prod(shape)].view(shape))
        start += -(-prod(shape) // page) * page
    return found


def _time(
    points: list[Point],
    seconds_limit: float,
    threads: int,
    report: Callable[[str, int, int], None],
) -> None:
    """Time all points in rounds until the limit, one round at least; their `best` is set."""
    clock = time.process_time if threads == 1 else time.perf_counter
    end = time.monotonic() + seconds_limit
    for done in range(ROUNDS):
        report("calibrating", done, ROUNDS)
        for backend in sorted({point.backend for point in points}):
            with ExitStack() as switched:
                if backend:
                    switched.enter_context(using(backend))
                for point in points:
                    if point.backend != backend:
                        continue
                    if done and time.monotonic() > end:
                        return
                    _read(point, clock)


def _read(point: Point, clock: Callable[[], float]) -> None:
    """Take one reading of a point, after a call that warms caches."""
    run = point.run()
    began = clock()
    run()
    once = clock() - began
    if point.best == float("inf"):
        point.calls = max(1, min(64, int(BLOCK / max(once, LEAST))))
    calls = range(point.calls)
    began = clock()
    for _ in calls:
        run()
    taken = (clock() - began) / point.calls
    point.best = min(point.best, max(taken, LEAST))
    point.calls = max(1, min(64, int(BLOCK / point.best)))


@contextmanager
def _alone(threads: int) -> Iterator[None]:
    """Give torch this number of threads, and keep the garbage collector out, for a block."""
    import gc

    before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collecting:
            gc.enable()
