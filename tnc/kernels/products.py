"""Matrix products to time: `mm`, `bmm`, and `bmm` whose left matrix is one for the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

from tnc.kernels.device import CUBLAS
from tnc.kernels.timing import Point, Room
from tnc.kernels.turns import Run

Sizes = tuple[int, ...]


def product_point(room: Room, backend: str, kind: str, sizes: Sizes) -> Point:
    """Return a product to time: sizes (m, n, k) of `mm`, (batch, m, n, k) of the others."""
    switched = "" if backend == CUBLAS else backend
    return Point(_prepared(room, kind, sizes), switched)


def needed(kind: str, sizes: Sizes) -> tuple[float, int]:
    """Return the FLOPs of a product and the items of its operands and its result."""
    batch, m, n, k = _whole(kind, sizes)
    left = m * k * (1 if kind == "shared" else batch)
    return 2.0 * prod(sizes), left + batch * (k * n + m * n)


def _whole(kind: str, sizes: Sizes) -> Sizes:
    return (1, *sizes) if kind == "mm" else sizes


def _prepared(room: Room, kind: str, sizes: Sizes) -> Callable[[], Run]:
    batch, m, n, k = _whole(kind, sizes)

    def prepare() -> Run:
        if kind == "mm":
            left, right = room.operands((m, k), (k, n))
            out = room.result((m, n))
            return lambda: torch.mm(left, right, out=out)
        left, right = room.operands((1 if kind == "shared" else batch, m, k), (batch, k, n))
        out = room.result((batch, m, n))
        if kind == "shared":
            return lambda: torch.bmm(left.expand(batch, m, k), right, out=out)
        return lambda: torch.bmm(left, right, out=out)

    return prepare
