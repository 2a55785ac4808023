"""Layers applied together with deltas that are chains of factors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnc.adapters import products
from tnc.adapters.delta import Delta


class Chain(NamedTuple):
    """What the active adapters add to one layer: pairs of factors, of inputs that may be dropped.

    `scaled` is the delta whose method multiplies the rows of the sum, where one does.
    """

    pairs: products.Pairs
    dropout: float
    scaled: Delta | None

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, stored: Tensor) -> Tensor:
        """Return the output of a linear layer; `weight` (o, i) is `stored` or its transpose."""
        if self.scaled is None:
            return products.linear(x, weight, bias, self.pairs, self.dropout)
        y = products.linear(x, weight, None, self.pairs, self.dropout)
        return _scaled(y, self.scaled, stored, bias, -1)

    def conv(self, x: Tensor, weight: Tensor, module: Any) -> Tensor | None:
        """Return the output of a convolution; None where it has groups, or x no batch axis."""
        if module.groups != 1 or not x.numel() or x.dim() != weight.dim():
            return None
        down, up, scale = products.stacked(self.pairs)
        bias = module._parameters["bias"]
        y = module._conv_forward(x, weight, bias if self.scaled is None else None)
        if self.dropout:
            x = torch.nn.functional.dropout(x, self.dropout)
        if x.dtype != down.dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.dtype)
        hidden = module._conv_forward(x, down, None)
        y = products.added_at_pixels(y, hidden, up, scale)
        if self.scaled is None:
            return y
        return _scaled(y, self.scaled, weight, bias, -len(self.scaled.site.signature.inputs))


def _scaled(y: Tensor, delta: Delta, stored: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """Return `y` with its rows along `axis` multiplied as the method says, plus the bias."""
    ratio = delta.method.rows(delta, stored)
    assert ratio is not None
    shape = [1] * y.dim()
    shape[axis] = -1
    ratio = ratio.reshape(shape)
    if bias is None:
        return (y * ratio).to(y.dtype)
    return torch.addcmul(bias.reshape(shape).to(y.dtype), y, ratio.to(y.dtype))
