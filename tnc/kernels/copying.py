"""Copies to time: into another order of dims, and of matrices to their transposes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tnc.kernels.timing import Room
from tnc.kernels.turns import Run

COPIED = tuple(4**power << 10 for power in range(1, 9))
"""Bytes of copies: 4 KiB to 64 MiB."""
SHORT = (2, 8, 32, 128)
"""Rows of matrices that are copied to their transposes; square ones where these are too many."""

Write = Callable[[Tensor, Tensor], Tensor]
"""Writes its second tensor into the first."""


def runs_of(item: int) -> tuple[int, ...]:
    """Return the bytes that stay contiguous in the copies that are timed."""
    return tuple(item * 4**power for power in range(8))


def moved(room: Room, size: int, run: int, write: Write = Tensor.copy_) -> Callable[[], Run]:
    """Return a copy of `size` bytes in another order of dims, `run` of them contiguous."""
    inner, blocks = min(run, size) // room.item, max(1, size // run)
    low = 1 << (blocks.bit_length() - 1) // 2
    if run > room.item:
        shape, order = (low, blocks // low, inner), (1, 0, 2)
    else:
        half = 1 << (low.bit_length() - 1) // 2
        shape, order = (half, low // half, blocks // low), (2, 1, 0)

    def prepare() -> Run:
        (source,) = room.operands(shape)
        seen = source.permute(order)
        out = room.result(tuple(seen.shape))
        return lambda: write(out, seen)

    return prepare


def turned(room: Room, size: int, short: int, write: Write = Tensor.copy_) -> Callable[[], Run]:
    """Return a copy of a matrix of `size` bytes to its transpose."""
    items = size // room.item
    low = min(short, 1 << (items.bit_length() - 1) // 2)

    def prepare() -> Run:
        (source,) = room.operands((items // low, low))
        out = room.result((low, items // low))
        return lambda: write(out, source.t())

    return prepare
