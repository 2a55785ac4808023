"""Nests bound to memory: a table of integers, and the call that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tnc.kernels.loops.nest import OUTPUT, Loop, Move, Nest, Nests

ALIGNED = 64
"""Values between steps start at multiples of so many bytes."""


def bound(
    nests: Nests, operands: Mapping[str, Tensor], bias: Tensor | None, rows: int, outputs: int
) -> Callable[[Tensor], Tensor]:
    """Return `x -> y` on `[rows, inputs]`, contiguous.

    Operands are contiguous; they and the bias are held, and read where they lie at each call.
    """
    from tnc.kernels.loops.run import HELD, SCRATCH, X, Y, entry

    held = (*operands.values(), *(() if bias is None else (bias,)))
    dtype = held[0].dtype
    item = dtype.itemsize
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
    words = [len(lines), offset, *(word for line in lines for word in line)]
    table = np.array(words, dtype=np.int64)
    address, run = table.ctypes.data, entry(str(dtype).removeprefix("torch."))
    like, made = torch.empty(rows, outputs, dtype=dtype, device="cpu"), torch.empty_like

    def call(x: Tensor, _held: object = (held, table)) -> Tensor:
        y = made(like)
        run(address, x.data_ptr(), y.data_ptr(), 0.0)
        return y

    return call


def _line(step: Nest | Move, places: Mapping[str, tuple[int, int]]) -> Sequence[int]:
    from tnc.kernels.loops.run import KINDS, WORDS

    if isinstance(step, Move):
        loops = [(1, 0, 0)] * (5 - len(step.loops)) + list(step.loops)
        where = [*places[step.result], *places[step.source], *places[step.source]]
        words = [KINDS.index("move"), *where, *(number for loop in loops for number in loop)]
    else:
        names = (step.result, step.vector, step.scalar)
        words = [KINDS.index(step.kind), *(number for name in names for number in places[name])]
        for loop in (step.batch, step.outer, step.rows, step.columns, step.sum):
            words += [loop.count, loop.result, loop.vector, loop.scalar]
    return words + [0] * (WORDS - len(words))
