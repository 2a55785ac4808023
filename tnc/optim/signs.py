"""Signs of a tensor, one bit each."""

from __future__ import annotations

import torch
from torch import Tensor

_LIGHT = (1, 2, 4, 8, 16, 32, 64, 128)


def packed_size(entries: int) -> int:
    """Return the bytes that the signs of so many entries take.

    >>> packed_size(8), packed_size(9)
    (1, 2)
    """
    return -(-entries // 8)


def pack_signs(tensor: Tensor) -> Tensor:
    """Return the bits "is above zero" of a tensor's entries, as bytes; the last may be unfilled."""
    flat = (tensor > 0).flatten()
    short = -flat.numel() % 8
    bits = torch.nn.functional.pad(flat, (0, short)).view(-1, 8).to(torch.uint8)
    return (bits * bits.new_tensor(_LIGHT)).sum(1, dtype=torch.uint8)


def signed(sizes: Tensor, packed: Tensor) -> Tensor:
    """Give a tensor of sizes, in place, the signs that were packed: minus where a bit is not set.

    >>> import torch
    >>> signed(torch.ones(3), pack_signs(torch.tensor([2.0, -1.0, 0.5])))
    tensor([ 1., -1.,  1.])
    """
    bits = packed[:, None].bitwise_and(packed.new_tensor(_LIGHT)).flatten()
    minus = bits[: sizes.numel()].view(sizes.shape) == 0
    return torch.where(minus, -sizes, sizes, out=sizes)
