"""Copies into another order of memory, compiled: rows of items, or blocks that are turned.

As sizes and strides are data, nothing is compiled for a copy: numba compiles this file once on a
machine (a few seconds) and keeps it beside the file, or in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from zlib import crc32

from numba import njit

from tnc.kernels.loops.arrange import BLOCKS, ROWS
from tnc.kernels.loops.blocks import edge_of, lanes_of, piece, stretch, turn_block, turn_edge
from tnc.kernels.loops.tiles import item_size, move, word

TOGETHER = 16
"""Rows that lie one after another in the source are copied so many at a time."""


@njit
def _block(like, c, v, high, ct, cv, wide):
    """Turn a matrix: `high` along the source's items, `wide` along the result's."""
    size, edge = item_size(like), edge_of(like)
    for i in range(0, wide, edge):
        left = min(edge, wide - i)
        for j in range(0, high, edge):
            below = min(edge, high - j)
            cp, vp = c + j * ct + i * size, v + i * cv + j * size
            if left == edge and below == edge:
                turn_block(like, cp, vp, ct, cv)
            else:
                turn_edge(like, cp, vp, ct, cv, below, left)


@njit
def _rows(like, c, v, high, ch, vh, wide, cw, vw, count):
    """Copy rows of `count` items over two loops, so that neighbours in the source go together."""
    short = count <= lanes_of(like)
    for start in range(0, high, TOGETHER):
        for j in range(wide):
            for i in range(start, min(high, start + TOGETHER)):
                cp, vp = c + i * ch + j * cw, v + i * vh + j * vw
                if short:
                    piece(like, cp, vp, count)
                else:
                    stretch(like, cp, vp, count)


@njit
def moves(like, c, v, at):
    """Copy as `arrange.arranged` says: a kind, then five loops of counts and strides in items."""
    size, kind = item_size(like), word(at)
    n0, n1, n2, n3, n4 = word(at + 8), word(at + 32), word(at + 56), word(at + 80), word(at + 104)
    c0, c1, c2 = word(at + 16) * size, word(at + 40) * size, word(at + 64) * size
    c3, c4 = word(at + 88) * size, word(at + 112) * size
    v0, v1, v2 = word(at + 24) * size, word(at + 48) * size, word(at + 72) * size
    v3, v4 = word(at + 96) * size, word(at + 120) * size
    if kind == ROWS:
        for a in range(n0):
            for b in range(n1):
                cp, vp = c + a * c0 + b * c1, v + a * v0 + b * v1
                _rows(like, cp, vp, n2, c2, v2, n3, c3, v3, n4)
        return
    for a in range(n0):
        for b in range(n1):
            for d in range(n2):
                cp, vp = c + a * c0 + b * c1 + d * c2, v + a * v0 + b * v1 + d * v2
                if kind == BLOCKS:
                    _block(like, cp, vp, n3, c3, v4, n4)
                    continue
                for e in range(n3):
                    for f in range(n4):
                        move(like, cp + e * c3 + f * c4, vp + e * v3 + f * v4)


def _compiled(source):
    """Compile `copy`; numba keys what it keeps by this file and by `source`, a closure's value."""

    @njit(
        [f"void(intp,intp,intp,int{bits})" for bits in (16, 32, 64)],
        cache=True,
        nogil=True,
    )
    def copy(table, target, source_, like):
        """Copy as the table at an address says."""
        _ = source
        moves(like, target, source_, table)

    return copy


copy = _compiled(
    crc32(b"".join(Path(__file__).with_name(n).read_bytes() for n in ("tiles.py", "blocks.py")))
)


@cache
def entry(size: int) -> Callable[[int, int, int, int], object]:
    """Return the compiled function of items of so many bytes, past its dispatcher."""
    found = {kinds[-1].bitwidth: made for kinds, made in copy.overloads.items()}
    return found[8 * size].entry_point
