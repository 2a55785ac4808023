"""Weights in blocks of four bits: codes of a normal distribution's quantiles, and block maxima."""

from __future__ import annotations

from math import prod
from statistics import NormalDist

import torch
from torch import Tensor

OFFSET = (1 - 1 / 32 + 1 - 1 / 30) / 2
"""The outermost probability: between those of 16 and of 15 equal parts (QLoRA, appendix E)."""


def _quantiles(count: int) -> list[float]:
    """Return so many quantiles above the median, from that of `OFFSET` down, in equal steps."""
    step = (OFFSET - 0.5) / count
    return [NormalDist().inv_cdf(OFFSET - k * step) for k in range(count)]


def _levels() -> tuple[float, ...]:
    above, below = _quantiles(8), _quantiles(7)
    found = [-value for value in below] + [0.0] + above[::-1]
    return tuple(value / above[0] for value in found)


LEVELS = _levels()
"""The 16 levels of NF4, from -1 to 1, zero among them.

Eight quantiles of a normal distribution above zero, seven below, divided by the largest.
(Dettmers et al., QLoRA, NeurIPS 2023, section 3.)
"""


def quantised(values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return codes, two a byte, and the largest magnitude of every block of so many entries.

    Both are flat: `(ceil(n / block) * block + 1) // 2` bytes, and one number a block in the type
    of the values.
    """
    flat = values.detach().flatten()
    flat = torch.nn.functional.pad(flat, [0, -len(flat) % block]).reshape(-1, block)
    scales = flat.abs().amax(1)
    table = torch.tensor(LEVELS, dtype=flat.dtype, device=flat.device)
    middles = (table[1:] + table[:-1]) / 2
    units = flat / torch.where(scales > 0, scales, 1.0).unsqueeze(1)
    codes = torch.bucketize(units, middles).to(torch.uint8).flatten()
    codes = torch.nn.functional.pad(codes, [0, len(codes) % 2]).reshape(-1, 2)
    return codes[:, 0] | (codes[:, 1] << 4), scales


def restored(codes: Tensor, scales: Tensor, shape: tuple[int, ...], block: int) -> Tensor:
    """Return the tensor of a shape that codes and maxima stand for, in the maxima's type."""
    table = torch.tensor(LEVELS, dtype=scales.dtype, device=scales.device)
    both = torch.stack([codes & 15, codes >> 4], 1).flatten()[: len(scales) * block]
    values = table[both.long()].reshape(-1, block) * scales.unsqueeze(1)
    return values.flatten()[: prod(shape)].reshape(shape)
