"""Nests bound to memory: a table of integers, and the call that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tnc.kernels.loops.arrange import arranged
from tnc.kernels.loops.nest import OUTPUT, Loop, Move, Nest, Nests, Picked

ALIGNED = 64
"""Values between steps start at multiples of so many bytes."""


def bound(
    steps: Callable[[int], Nests | None],
    operands: Mapping[str, Tensor],
    bias: Tensor | None,
    shape: tuple[int, int, int],
    tile: int = 0,
) -> Callable[[Tensor], Tensor] | None:
    """Return `x -> y` on `[rows, inputs]`, contiguous; None where a tile has no `steps`.

    `shape` are rows, inputs and outputs; `tile` rows are taken at a time (0: all). Operands are
    contiguous; they and the bias are held, and read where they lie at each call.
    """
    from tnc.kernels.loops.run import entry

    rows, inputs, outputs = shape
    dtype = next(iter(operands.values())).dtype
    tile = min(tile or rows, rows)
    whole, left = divmod(rows, tile)
    tables = []
    for count, tiles in ((tile, whole), (left, 1)):
        if not count:
            continue
        found = steps(count)
        if found is None:
            return None
        bytes_ = (count * inputs * dtype.itemsize, count * outputs * dtype.itemsize)
        tables.append(_table(found, operands, bias, (tiles, *bytes_), (count, outputs)))
    held = (*operands.values(), *(() if bias is None else (bias,)), *tables)
    run = entry(str(dtype).removeprefix("torch."))
    like, made = torch.empty(rows, outputs, dtype=dtype, device="cpu"), torch.empty_like
    address = tables[0].ctypes.data
    if len(tables) == 1:

        def call(x: Tensor, _held: object = held) -> Tensor:
            y = made(like)
            run(address, x.data_ptr(), y.data_ptr(), 0.0)
            return y

        return call
    last, item = tables[1].ctypes.data, dtype.itemsize
    x_done, y_done = whole * tile * inputs * item, whole * tile * outputs * item

    def call_tiles(x: Tensor, _held: object = held) -> Tensor:
        y = made(like)
        source, result = x.data_ptr(), y.data_ptr()
        run(address, source, result, 0.0)
        run(last, source + x_done, result + y_done, 0.0)
        return y

    return call_tiles


def _table(
    nests: Nests,
    operands: Mapping[str, Tensor],
    bias: Tensor | None,
    tiles: tuple[int, int, int],
    shape: tuple[int, int],
) -> np.ndarray:
    """Return the words of a table: `tiles` are their number and a tile's bytes of x and y."""
    from tnc.kernels.loops.run import HELD, SCRATCH, X, Y

    rows, outputs = shape
    held = (*operands.values(), *(() if bias is None else (bias,)))
    item = held[0].dtype.itemsize
    places = {"x": (X, 0), OUTPUT: (Y, 0)} | {n: (HELD, t.data_ptr()) for n, t in operands.items()}
    offset = 0
    for name, count in nests.scratch:
        places[name] = (SCRATCH, offset)
        offset += -(-count * item // ALIGNED) * ALIGNED
    lines = [_line(step, places) for step in nests.steps]
    if bias is not None:
        where = {"bias": (HELD, bias.data_ptr()), **places}
        columns = Loop(outputs, 1, 1, 0)
        added = Nest("add", OUTPUT, "bias", "bias", Loop(), Loop(),
                     Loop(rows, outputs), columns, Loop())  # fmt: skip
        lines.append(_line(added, where))
    words = [len(lines), offset, *tiles, *(word for line in lines for word in line)]
    return np.array(words, dtype=np.int64)


def _line(step: Nest | Move | Picked, places: Mapping[str, tuple[int, int]]) -> Sequence[int]:
    from tnc.kernels.loops.run import KINDS, WORDS

    if isinstance(step, Picked):
        where = [*places[step.result], *places[step.source], *places["x"]]
        numbers = [number for run in step.runs for number in run]
        words = [KINDS.index("pick"), *where, step.rows, step.items, len(step.runs), *numbers]
    elif isinstance(step, Move):
        copied = arranged(step.loops)
        assert copied is not None  # `nests` refuses copies of too many loops
        where = [*places[step.result], *places[step.source], *places[step.source]]
        words = [KINDS.index("move"), *where, *copied]
    else:
        names = (step.result, step.vector, step.scalar)
        words = [KINDS.index(step.kind), *(number for name in names for number in places[name])]
        for loop in (step.batch, step.outer, step.rows, step.columns, step.sum):
            words += [loop.count, loop.result, loop.vector, loop.scalar]
    return words + [0] * (WORDS - len(words))
