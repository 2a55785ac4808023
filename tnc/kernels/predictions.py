"""How well the prices of a machine meet what products of random sizes take on it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from tnc.kernels.backend import torch_dtype
from tnc.kernels.price import Machine
from tnc.kernels.products import Sizes, needed, product_point
from tnc.kernels.timing import MOST_BYTES, Room, alone, read_all

LARGEST = {"mm": (4096, 4096, 4096), "bmm": (1024, 256, 256, 256), "shared": (1024, 256, 256, 256)}
MOST_FLOPS = 2e8


@dataclass(frozen=True)
class Fit:
    """Prices over times of one kind of product: the median, and how far they are off.

    `middle` and `most` are the median and the 90th percentile of max(price/time, time/price).
    """

    backend: str
    kind: str
    bias: float
    middle: float
    most: float


def fits(
    machine: Machine, count: int = 100, seed: int = 0, seconds_limit: float = 5.0
) -> tuple[Fit, ...]:
    """Time `count` products of each kind and backend, sizes random, and compare the prices."""
    draw = random.Random(seed)
    drawn = {kind: [_sizes(draw, kind) for _ in range(count)] for kind in LARGEST}
    asked = [
        (backend, kind, sizes)
        for backend in machine.backends
        for kind in LARGEST
        for sizes in drawn[kind]
    ]
    with alone(machine.threads):
        room = Room(torch_dtype(machine.dtype), machine.device)
        points = [product_point(room, *each) for each in asked]
        read_all(points, seconds_limit, device=room.device)
    ratios: dict[tuple[str, str], list[float]] = {}
    for (backend, kind, sizes), point in zip(asked, points, strict=True):
        ratio = _price(machine, backend, kind, sizes) / point.best
        ratios.setdefault((backend, kind), []).append(ratio)
    return tuple(_fit(backend, kind, found) for (backend, kind), found in ratios.items())


def _fit(backend: str, kind: str, ratios: Sequence[float]) -> Fit:
    off = [max(ratio, 1 / ratio) for ratio in ratios]
    return Fit(backend, kind, median(ratios), median(off), quantiles(off, n=10)[-1])


def _price(machine: Machine, backend: str, kind: str, sizes: Sizes) -> float:
    batch, m, n, k = (1, *sizes) if kind == "mm" else sizes
    return machine.gemm(backend, batch, m, n, k, shared=kind == "shared")


def _sizes(draw: random.Random, kind: str) -> Sizes:
    """Return sizes of which every order of magnitude is as likely, one in eight of them 1."""
    while True:
        sizes = tuple(
            1 if draw.random() < 0.125 else round(largest ** draw.random())
            for largest in LARGEST[kind]
        )
        flops, items = needed(kind, sizes)
        if flops <= MOST_FLOPS and items * 8 <= MOST_BYTES and (kind == "mm" or sizes[0] > 1):
            return sizes
