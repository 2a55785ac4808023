"""The one compiled function: it reads nests from a table of integers and runs them.

As sizes and strides are data, nothing is compiled for a layer: numba compiles this file once on a
machine (about 5 s) and keeps it beside the file, or in the user's cache where that cannot be
written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
from numba import njit

from tnc.kernels.loops.moves import moves
from tnc.kernels.loops.tiles import BYTES, add, dot, item_size, move, pairs, tile, word

_tile_1_1, _tile_1_2, _tile_1_4, _tile_1_8 = (tile(1, n) for n in (1, 2, 4, 8))
_tile_4_1, _tile_4_2, _tile_4_4 = (tile(4, n) for n in (1, 2, 4))
_dot_1, _dot_4 = dot(1, 4), dot(4, 2)
_pairs = pairs(4)

HELD, X, Y, SCRATCH = range(4)
"""What an address in the table is relative to; held memory is given by its own address."""
KINDS = ("tile", "dot", "pairs", "move", "add", "pick")
TILE, DOT, PAIRS, MOVE, ADD, PICK = range(6)
WORDS, HEAD = 28, 5
"""Words of a step: kind; place and offset of result, vector, scalar; then the loops. Before the
steps: how many there are, bytes of scratch, tiles of rows, bytes of a tile's input and output."""


@njit
def _tiles(like, c, v, s, rows, cr, sr, columns, k, vk, sk):
    size = item_size(like)
    lanes = BYTES // size
    deep = rows - rows % 4
    column = 0
    if deep:
        while column < columns:
            left = columns - column
            vp, cp = v + column * size, c + column * size
            for row in range(0, deep, 4):
                if left > 2 * lanes:
                    _tile_4_4(like, cp + row * cr, vp, s + row * sr, k, vk, cr, sr, sk, left)
                elif left > lanes:
                    _tile_4_2(like, cp + row * cr, vp, s + row * sr, k, vk, cr, sr, sk, left)
                else:
                    _tile_4_1(like, cp + row * cr, vp, s + row * sr, k, vk, cr, sr, sk, left)
            column += 4 * lanes
    if deep == rows:
        return
    column = 0
    while column < columns:
        left = columns - column
        vp, cp = v + column * size, c + column * size
        for row in range(deep, rows):
            if left > 4 * lanes:
                _tile_1_8(like, cp + row * cr, vp, s + row * sr, k, vk, cr, sr, sk, left)
            elif left > 2 * lanes:
                _tile_1_4(like, cp + row * cr, vp, s + row * sr, k, vk, cr, sr, sk, left)
            elif left > lanes:
                _tile_1_2(like, cp + row * cr, vp, s + row * sr, k, vk, cr, sr, sk, left)
            else:
                _tile_1_1(like, cp + row * cr, vp, s + row * sr, k, vk, cr, sr, sk, left)
        column += 8 * lanes


@njit
def _dots(like, c, v, s, rows, cr, sr, columns, cc, vc, k):
    whole = columns - columns % 4
    for row in range(rows):
        cp, sp = c + row * cr, s + row * sr
        for column in range(0, whole, 4):
            _dot_4(like, cp + column * cc, v + column * vc, sp, k, cc, vc)
        for column in range(whole, columns):
            _dot_1(like, cp + column * cc, v + column * vc, sp, k, cc, vc)


@njit
def _picks(like, c, v, x, at):
    """Copy the rows of a table that numbers ask for, which are 64-bit integers."""
    size = item_size(like)
    rows, items, runs = word(at), word(at + 8), word(at + 16)
    for row in range(rows):
        number = word(x + row * 8)
        place = 0
        for run in range(runs):
            by = at + 24 + run * 24
            digit = number // word(by)
            if word(by + 8):
                digit %= word(by + 8)
            place += digit * word(by + 16)
        cp, vp = c + row * items * size, v + place * items * size
        for item in range(items):
            move(like, cp + item * size, vp + item * size)


@njit
def _address(at, x, y, scratch):
    place, offset = word(at), word(at + 8)
    if place == X:
        return x + offset
    if place == Y:
        return y + offset
    if place == SCRATCH:
        return scratch + offset
    return offset


@njit
def _steps(like, table, x, y, scratch):
    """Run the steps of the table on one tile of rows."""
    size = item_size(like)
    for step in range(word(table)):
        at = table + HEAD * 8 + step * WORDS * 8
        kind = word(at)
        c0 = _address(at + 8, x, y, scratch)
        v0 = _address(at + 24, x, y, scratch)
        s0 = _address(at + 40, x, y, scratch)
        if kind == MOVE:
            moves(like, c0, v0, at + 56)
            continue
        if kind == PICK:
            _picks(like, c0, v0, s0, at + 56)
            continue
        batch, cb = word(at + 56), word(at + 64) * size
        vb, sb = word(at + 72) * size, word(at + 80) * size
        outer, co = word(at + 88), word(at + 96) * size
        vo, so = word(at + 104) * size, word(at + 112) * size
        rows, cr, sr = word(at + 120), word(at + 128) * size, word(at + 144) * size
        columns, cc, vc = word(at + 152), word(at + 160) * size, word(at + 168) * size
        k, vk, sk = word(at + 184), word(at + 200) * size, word(at + 208) * size
        if kind == ADD:
            for row in range(rows):
                for column in range(columns):
                    add(like, c0 + row * cr + column * size, v0 + column * size)
            continue
        for b in range(batch):
            for o in range(outer):
                c = c0 + b * cb + o * co
                v = v0 + b * vb + o * vo
                s = s0 + b * sb + o * so
                if kind == TILE:
                    _tiles(like, c, v, s, rows, cr, sr, columns, k, vk, sk)
                elif kind == DOT:
                    _dots(like, c, v, s, rows, cr, sr, columns, cc, vc, k)
                else:
                    for column in range(0, columns, 4 * (BYTES // size)):
                        on = column * size
                        _pairs(like, c + on, v + on, s + on, k, vk, sk, columns - column)


def _compiled(source):
    """Compile `run`; numba keys what it keeps by this file and by `source`, a closure's value."""

    @njit(
        ["void(intp,intp,intp,float32)", "void(intp,intp,intp,float64)"],
        cache=True,
        nogil=True,
    )
    def run(table, x, y, like):
        """Run the steps of the table at an address on an input, writing the result to `y`."""
        _ = source
        room = np.empty(word(table + 8) + BYTES, np.uint8)
        scratch = (room.ctypes.data + BYTES - 1) & ~(BYTES - 1)
        x_bytes, y_bytes = word(table + 24), word(table + 32)
        for place in range(word(table + 16)):
            _steps(like, table, x + place * x_bytes, y + place * y_bytes, scratch)

    return run


_PARTS = ("tiles.py", "moves.py", "blocks.py")
run = _compiled(crc32(b"".join(Path(__file__).with_name(n).read_bytes() for n in _PARTS)))


def entry(dtype: str) -> Callable[[int, int, int, float], object]:
    """Return the compiled function of an item type, `(table, x, y, 0.0)`, past its dispatcher."""
    (found,) = (made for kinds, made in run.overloads.items() if str(kinds[-1]) == dtype)
    return found.entry_point
