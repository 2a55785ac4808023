"""Prices of a CUDA device that was not measured: estimated from a data sheet.

A product is cut into tiles of its result, which the multiprocessors take in waves; it costs the
waves, or the bytes that it moves where those take longer. The estimates order layouts and say how
dispatch, traffic and products weigh against each other; they are no measurement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, prod
from typing import Any

from tnc.kernels.device import CUBLAS, TF32
from tnc.kernels.price import COLUMNS, ITEM_BYTES, KINDS, VERSION

NAME = "estimate from the data sheet of an NVIDIA A100 40 GB"
PEAKS = {"float64": 9.7e12, "float32": 19.5e12, "bfloat16": 312e12, "float16": 312e12}
"""FLOP/s, multiply-adds counted as two; float64 and float32 without tensor cores."""
TF32_PEAK = 156e12
PROCESSORS = 108
TILES = ((128, 128, 0.85), (64, 64, 0.6), (32, 32, 0.35), (16, 16, 0.15))
"""Rows and columns of a result's tile, and the part of a multiprocessor's peak that it reaches."""
SPLITS = (1, 4, 16, 64)
"""Into how many parts a library cuts the sum where the result has few tiles."""
MEMORY, CACHE, CACHED = 1.4e12, 4e12, 20 << 20
"""Bytes per second of memory and cache, and the working set that the cache holds."""
CALL, START, STATEMENT = 5e-6, 1.5e-6, 1e-6
"""Seconds of a call from Python, of starting a kernel on the device, of a line of Python."""
SECTOR = 32
"""Bytes that memory gives at least; shorter runs of a copy waste the rest."""
WASTE = 4.0

SIZES = (1, 4, 16, 64, 256, 1024, 4096)
SMALL = (1, 4, 16, 64, 256)
BATCHES = (4, 32, 256, 1024)
COPIED = tuple(4**power << 10 for power in range(1, 10))
STREAMED = (1 << 20, 8 << 20, CACHED, 4 * CACHED, 512 << 20)
RUNS = 8
SHORT = (2, 8, 32, 128)
ROWS = {"mm": (1024,), "bmm": (32, 64), "shared": (32, 64)}

Sizes = Sequence[int]


def estimated(dtype: str, device: str) -> dict[str, Any]:
    """Return the table as plain data, for `price.from_data`."""
    peak = TF32_PEAK if device == TF32 else PEAKS[dtype]
    item = ITEM_BYTES[dtype]
    runs = tuple(item * 4**power for power in range(RUNS))
    return {
        "version": VERSION,
        "key": NAME,
        "device": device,
        "dtype": dtype,
        "threads": 1,
        "made": "",
        "statement": STATEMENT,
        "backends": {
            CUBLAS: {
                "error": 0.0,
                "refused": "",
                "peak": TILES[0][2] * peak,
                **{kind: _kind(kind, peak, item) for kind in KINDS},
            }
        },
        "copy": {
            "overhead": CALL,
            "axes": [COPIED, runs],
            "values": [CALL + _copied(*at) for at in product(COPIED, runs)],
        },
        "turn": {
            "axes": [COPIED, SHORT],
            "values": [
                CALL + _copied(size, item * short) for size, short in product(COPIED, SHORT)
            ],
        },
        "fresh": {"axes": [[1 << 16, 1 << 28]], "values": [1e-9, 1e-9]},
        "bandwidth": {"axes": [STREAMED], "values": [_bandwidth(size) for size in STREAMED]},
    }


def _kind(kind: str, peak: float, item: int) -> dict[str, Any]:
    axes = [SIZES] * 3 if kind == "mm" else [BATCHES, *[SMALL] * 3]
    columns = [(*ROWS[kind], n, 64) for n in range(1, COLUMNS + 1)]
    return {
        "overhead": CALL,
        "small": CALL,
        "below": 0,
        "columns": [CALL + _product(sizes, kind, peak, item) for sizes in columns],
        "axes": axes,
        "values": [CALL + _product(sizes, kind, peak, item) for sizes in product(*axes)],
    }


def _product(sizes: Sizes, kind: str, peak: float, item: int) -> float:
    batch, m, n, k = (1, *sizes) if kind == "mm" else sizes
    left = m * k * (1 if kind == "shared" else batch)
    moved = item * (left + batch * (k * n + m * n))
    return START + max(min(_waves(batch, m, n, k, peak)), moved / _bandwidth(moved))


def _waves(batch: int, m: int, n: int, k: int, peak: float) -> Iterator[float]:
    for (rows, columns, share), parts in product(TILES, SPLITS):
        waves = ceil(batch * ceil(m / rows) * ceil(n / columns) * parts / PROCESSORS)
        flops = 2 * prod((rows, columns, max(16, ceil(k / parts))))
        adding = START if parts > 1 else 0.0
        yield waves * flops / (share * peak / PROCESSORS) + adding


def _copied(size: int, run: int) -> float:
    return START + 2 * size / _bandwidth(2 * size) * min(WASTE, max(1.0, SECTOR / run))


def _bandwidth(size: int) -> float:
    return CACHE if size <= CACHED else MEMORY
