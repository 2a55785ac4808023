"""Tensors copied into another order of memory by the compiled copy, where it can be."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tnc.kernels.loops.arrange import arranged

WIDTHS = (2, 4, 8)
_BINDINGS: Any = torch._C
_dispatch_modes = _BINDINGS._len_torch_dispatch_stack


def turn(target: Tensor, source: Tensor) -> Tensor:
    """Write `source` into `target`, which has its shape, whatever the strides of both.

    Without compiled copies, for loops that they do not know, and where a dispatch mode watches,
    torch copies.
    """
    found = _bound(source.shape, target.stride(), source.stride(), source.dtype)
    if found is None or target.dtype != source.dtype or _dispatch_modes():
        return target.copy_(source)
    run, address, _ = found
    run(address, target.data_ptr(), source.data_ptr(), 0)
    return target


@lru_cache(maxsize=4096)
def _bound(
    shape: tuple[int, ...], result: tuple[int, ...], source: tuple[int, ...], dtype: torch.dtype
) -> tuple[Any, int, object] | None:
    loops = list(zip(shape, result, source, strict=True))
    words = arranged(loops) if all(shape) and dtype.itemsize in WIDTHS else None
    if words is None:
        return None
    try:
        from tnc.kernels.loops.moves import entry
    except Exception:  # without numba, or where it cannot compile, torch copies
        return None
    table = np.array(words, dtype=np.int64)
    return entry(dtype.itemsize), table.ctypes.data, table
