"""Weights of convolutions laid out once as oneDNN wants them, for inference.

The library's own convolution brings the weight into the blocked layout of its kernel at every
call, and takes a slow path for one small image. What is private in torch is looked for, and where
it is missing nothing is packed.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from tnc.nn.conv import Call

WORTH = 1 << 14
"""Entries of a weight with a kernel of two axes from which packing it pays."""
WORTH_PLAIN = 1 << 17
"""Entries from which packing any weight pays: those without such a kernel are laid out faster."""
WORTH_SMALL = 1 << 20
"""Multiply-adds from which packing pays for one small image."""
SMALL_IMAGE = 20480
"""Entries of a single image up to which the library does not use oneDNN."""


def can_pack(weight: tuple[int, ...]) -> bool:
    """Whether a float32 weight of a shape can be packed."""
    return bool(OPS and len(weight) == 4 and torch.backends.mkldnn.enabled)


def worth_packing(weight: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether packing pays for a weight of a shape, and float32 inputs of about a `shape`."""
    count, taps = prod(weight), prod(weight[2:])
    if count >= (WORTH if taps > 3 else WORTH_PLAIN):
        return True
    small = shape[0] == 1 and weight[1] * prod(shape[2:]) <= SMALL_IMAGE
    return small and taps > 3 and count * prod(shape[2:]) >= WORTH_SMALL


def pack(weight: Tensor, call: Call, shape: tuple[int, ...]) -> Tensor:
    """Lay a weight out for a call on inputs of a `shape`; no gradient is known of it."""
    packed: Tensor = OPS[1](weight, call.padding, call.stride, call.dilation, call.groups, shape)
    return packed


def _found() -> tuple[Any, ...]:
    try:
        ops = torch.ops.mkldnn
        return ops._convolution_pointwise.default, ops._reorder_convolution_weight.default
    except (AttributeError, RuntimeError):
        return ()


OPS = _found()
"""The convolution with a packed weight, and what packs one; empty where torch has none."""
