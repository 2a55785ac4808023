"""Weights of convolutions laid out once as oneDNN wants them, for inference.

The library's own convolution brings the weight into the blocked layout of its kernel at every
call, and takes a slow path for one small image. What is private in torch is looked for, and where
it is missing nothing is packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

WORTH = 1 << 14
"""Entries of a weight with a kernel of two axes from which packing it pays."""
WORTH_PLAIN = 1 << 17
"""Entries from which packing any weight pays: those without such a kernel are laid out faster."""
WORTH_SMALL = 1 << 20
"""Multiply-adds from which packing pays for one small image."""
SMALL_IMAGE = 20480
"""Entries of a single image up to which the library does not use oneDNN."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight in oneDNN's layout with the options of its convolution."""

    weight: Tensor
    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def run(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve; no gradient is known of it."""
        found: Tensor = _OPS[0](
            x,
            self.weight,
            bias,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            "none",
            (),
            "",
        )
        return found


def worth_packing(weight: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether packing pays for a weight of a shape, and float32 inputs of about a `shape`."""
    if not _OPS or len(weight) != 4 or not torch.backends.mkldnn.enabled:
        return False
    count, taps = prod(weight), prod(weight[2:])
    if count >= (WORTH if taps > 3 else WORTH_PLAIN):
        return True
    small = shape[0] == 1 and weight[1] * prod(shape[2:]) <= SMALL_IMAGE
    return small and taps > 3 and count * prod(shape[2:]) >= WORTH_SMALL


def pack(weight: Tensor, call: Any, shape: tuple[int, ...]) -> Packed:
    """Lay a weight out for a call on inputs of a `shape`."""
    options = (call.padding, call.stride, call.dilation, call.groups)
    return Packed(_OPS[1](weight, *options, shape), *options)


def _found() -> tuple[Any, ...]:
    try:
        ops = torch.ops.mkldnn
        return ops._convolution_pointwise.default, ops._reorder_convolution_weight.default
    except (AttributeError, RuntimeError):
        return ()


_OPS = _found()
