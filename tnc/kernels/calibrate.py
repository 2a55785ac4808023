"""Measure what operations cost on this machine: `tnc doctor --calibrate [--device cuda]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import accumulate, product
from math import isnan, prod
from typing import Any

import torch

from tnc.kernels.backend import SMALLEST, cuda_probe, probes, torch_dtype
from tnc.kernels.copying import COPIED, SHORT, moved, runs_of, turned
from tnc.kernels.device import CPU
from tnc.kernels.machine import fingerprint, torch_threads
from tnc.kernels.price import COLUMNS, KINDS, VERSION
from tnc.kernels.products import needed, product_point
from tnc.kernels.timing import (
    MOST_BYTES,
    Point,
    Report,
    Room,
    alone,
    read_all,
    torch_device,
)
from tnc.kernels.turns import LEAST, Run

SIZES = (1, 2, 4, 16, 64, 256, 1024, 4096)
SMALL = (1, 4, 16, 64, 256)
BATCHES = (4, 32, 256, 1024)
AXES = {
    "mm": (SIZES, SIZES, SIZES),
    "bmm": (BATCHES, SMALL, SMALL, SMALL),
    "shared": (BATCHES, SMALL, SMALL, SMALL),
}
ROWS = {"mm": (256,), "bmm": (32, 64), "shared": (32, 64)}
"""The batch and rows of products whose columns, 1 to 64, are measured one by one."""
MOST_FLOPS = {"mm": 3e8, "bmm": 4e7, "shared": 4e7}
CUDA_FLOPS = {"mm": 1.5e11, "bmm": 4e10, "shared": 4e10}
"""Larger products are not measured: their rate is that of the largest ones that are."""
MOST_SECONDS = 4e-3
"""Nor are products of a dtype without fast ones that would take longer."""
STREAMED = (128 << 10, 512 << 10, 2 << 20, 8 << 20, 24 << 20, 96 << 20, 256 << 20)
"""Bytes of working sets, half of them read and half written."""
FRESH = (64 << 10, 1 << 20, 8 << 20, 31 << 20, 33 << 20, 128 << 20)

Axes = Sequence[Sequence[int]]


def calibrate(
    dtype: str = "float32",
    threads: int | None = None,
    seconds_limit: float = 20.0,
    report: Report = lambda stage, done, total: None,
    device: str = CPU,
) -> dict[str, Any]:
    """Measure this machine's table as plain data, for `machine.store` and `machine.from_data`.

    Takes about `seconds_limit`, and longer where one reading of every point does. On CUDA the
    present device is measured. Raises KernelError where there is none.
    """
    kind = torch_dtype(dtype)
    torch_device(device)
    threads = threads or torch_threads() if device == CPU else 1
    found = probes(dtype) if device == CPU else (cuda_probe(dtype),)
    runs = runs_of(kind.itemsize)
    with alone(threads):
        room = Room(kind, device)
        grids = {
            (probe.backend, name): _products(room, probe.backend, name)
            for probe in found
            if not probe.refused
            for name in KINDS
        }
        columns = {
            (backend, name): [
                product_point(room, backend, name, (*ROWS[name], n, 64))
                for n in range(1, COLUMNS + 1)
            ]
            for backend, name in grids
        }
        copies = [Point(moved(room, *at)) for at in product(COPIED, runs)]
        turns = [Point(turned(room, *at)) for at in product(COPIED, SHORT)]
        streams = [Point(_stream(room, size)) for size in STREAMED]
        new = [Point(_written(room, size, fresh=True)) for size in FRESH]
        used = [Point(_written(room, size, fresh=False)) for size in FRESH]
        lines = [Point(_line(room, number)) for number in range(3)]
        products = [each for grid in grids.values() for each in grid if each is not None]
        products += [each for row in columns.values() for each in row]
        every = [*products, *copies, *turns, *streams, *new, *used, *lines]
        read_all(every, seconds_limit, report, device)
    dispatch = min(point.best for point in copies)
    faults = [max(LEAST, one.best - other.best) for one, other in zip(new, used, strict=True)]
    rates = [
        size / max(LEAST, point.best - dispatch)
        for size, point in zip(STREAMED, streams, strict=True)
    ]
    return {
        "version": VERSION,
        "key": fingerprint(dtype, threads, device),
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "statement": _short(sum(point.best for point in lines) / len(lines)),
        "backends": {
            probe.backend: {
                "error": None if isnan(probe.error) else _short(probe.error),
                "refused": probe.refused,
                **({} if probe.refused else _library(probe.backend, grids, columns)),
            }
            for probe in found
        },
        "copy": {
            "overhead": _short(dispatch),
            **_table((COPIED, runs), [point.best for point in copies]),
        },
        "turn": _table((COPIED, SHORT), [point.best for point in turns]),
        "fresh": _table((FRESH,), faults),
        "bandwidth": _table((STREAMED,), _falling(rates)),
    }


def _library(
    backend: str,
    grids: dict[tuple[str, str], list[Point | None]],
    columns: dict[tuple[str, str], list[Point]],
) -> dict[str, Any]:
    rates = [
        2 * prod(sizes) / point.best
        for kind in KINDS
        for sizes, point in zip(product(*AXES[kind]), grids[backend, kind], strict=True)
        if point is not None
    ]
    tables = {
        kind: _kind(backend, kind, grids[backend, kind], columns[backend, kind]) for kind in KINDS
    }
    return {"peak": _short(max(rates)), **tables}


def _kind(
    backend: str, kind: str, points: list[Point | None], columns: list[Point]
) -> dict[str, Any]:
    below = SMALLEST[backend]
    seconds = [None if point is None else point.best for point in points]
    known = [
        (prod(sizes) > below, whole)
        for sizes, whole in zip(product(*AXES[kind]), seconds, strict=True)
        if whole is not None
    ]
    overhead = min(whole for own, whole in known if own)
    return {
        "overhead": _short(overhead),
        "small": _short(min((whole for own, whole in known if not own), default=overhead)),
        "below": below,
        "columns": [_short(point.best) for point in columns],
        **_table(AXES[kind], seconds),
    }


def _table(axes: Axes, values: Sequence[float | None]) -> dict[str, Any]:
    return {"axes": axes, "values": [None if each is None else _short(each) for each in values]}


def _falling(rates: Sequence[float]) -> list[float]:
    """Return rates that fall with the working set: a larger one's is what a smaller one has too."""
    return list(accumulate(reversed(rates), max))[::-1]


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _products(room: Room, backend: str, kind: str) -> list[Point | None]:
    """Return the products to time on a grid, None for the points that would take too long."""
    largest = MOST_FLOPS if room.device == CPU else CUDA_FLOPS
    most = min(largest[kind], MOST_SECONDS * _rate(room, backend))
    points: list[Point | None] = []
    for sizes in product(*AXES[kind]):
        flops, items = needed(kind, sizes)
        small = flops <= most and items * room.item <= MOST_BYTES
        points.append(product_point(room, backend, kind, sizes) if small else None)
    return points


def _rate(room: Room, backend: str) -> float:
    """Return the FLOP/s of a square product, roughly."""
    size = 192 if room.device == CPU else 2048
    point = product_point(room, backend, "mm", (size, size, size))
    read_all([point], 0.05, device=room.device)
    return 2 * size**3 / point.best


def _stream(room: Room, size: int) -> Callable[[], Run]:
    def prepare() -> Run:
        shape = (size // 2 // room.item,)
        (source,) = room.operands(shape)
        out = room.result(shape)
        return lambda: out.copy_(source)

    return prepare


def _written(room: Room, size: int, *, fresh: bool) -> Callable[[], Run]:
    shape = (size // room.item,)

    def prepare() -> Run:
        if fresh:
            return lambda: torch.empty(shape, dtype=room.dtype, device=room.device).fill_(1)
        out = room.result(shape)
        return lambda: out.fill_(1)

    return prepare


def _line(room: Room, number: int) -> Callable[[], Run]:
    def prepare() -> Run:
        (matrix,) = room.operands((64, 64))
        lines: tuple[Run, ...] = (
            lambda: matrix.view(16, 4, 64),
            lambda: matrix[8:16],
            lambda: matrix.t(),
        )
        return lines[number]

    return prepare
