"""Adapted layers applied in few passes: the delta is never made, the output is written once more.

A pair is a delta `scale * up @ down`, down (r, i..), up (o, r). Several of them, such as a trained
one and a frozen start, or several adapters, are one product of their stacked factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from tnc.nn.conv_stage import is_last
from tnc.nn.generated import is_plain


class Pair(NamedTuple):
    """A delta of two factors: `down` (r, i..), `up` (o, r), and what their product is times."""

    down: Tensor
    up: Tensor
    scale: float


Pairs = Sequence[Pair]

FEW = 64
"""Below so many rows a call costs more than the passes that a backward of our own saves."""


def stacked(pairs: Pairs) -> tuple[Tensor, Tensor, float]:
    """Return one pair for all, differentiable; scales that differ are multiplied into `up`."""
    first = pairs[0]
    if len(pairs) == 1:
        return first.down, first.up, first.scale
    down = torch.cat([pair.down for pair in pairs])
    if all(pair.scale == first.scale for pair in pairs):
        return down, torch.cat([pair.up for pair in pairs], 1), first.scale
    return down, torch.cat([pair.up * pair.scale for pair in pairs], 1), 1.0


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, pairs: Pairs, dropout: float = 0.0
) -> Tensor:
    """Return `x (weight + sum of pairs)^T + bias` over the last dimension; weight (o, i).

    With `dropout` a share of the pairs' input is dropped. Factors may be wider than `x`: their part
    is computed in their precision and rounded once, into the output.
    """
    kind = "cpu" if x.is_cpu else x.device.type
    if not is_plain(kind) or not x.numel() or not _beside(x, weight, pairs):
        return added(functional.linear(x, weight, bias), x, pairs, dropout)
    plain = len(pairs) == 1 and not dropout and pairs[0].down.dtype == x.dtype
    if plain and x.numel() < FEW * x.shape[-1]:
        return _few(x, weight, bias, pairs[0])
    dropped = torch.native_dropout(x, dropout, True)[0] if dropout else None
    tensors = [tensor for pair in pairs for tensor in (pair.down, pair.up)]
    scales = tuple([pair.scale for pair in pairs])
    if not torch.is_grad_enabled():
        return _forward(x, dropped, weight, bias, scales, tensors)[0]
    y: Tensor = _Linear.apply(x, dropped, weight, bias, scales, *tensors)[0]  # type: ignore[no-untyped-call]
    return y


def _few(x: Tensor, weight: Tensor, bias: Tensor | None, pair: Pair) -> Tensor:
    """Return what `linear` does by torch's own products, on rows."""
    rows = x.reshape(-1, x.shape[-1])
    hidden = torch.mm(rows, pair.down.t())
    y = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
    y = torch.addmm(y, hidden, pair.up.t(), alpha=pair.scale)
    return y.view(*x.shape[:-1], weight.shape[0])


def added(y: Tensor, x: Tensor, pairs: Pairs, dropout: float = 0.0) -> Tensor:
    """Return `y + x (sum of pairs)^T`; torch's own calls, which every transform knows."""
    if dropout:
        x = functional.dropout(x, dropout)
    down, up, scale = stacked(pairs)
    down = down.flatten(1)
    if _mixed(x, y, down):
        wide = functional.linear(functional.linear(x.to(down.dtype), down), up)
        return torch.add(y, wide, alpha=scale).to(y.dtype)
    hidden = functional.linear(x, down)
    flat = torch.addmm(
        y.reshape(-1, y.shape[-1]), hidden.reshape(-1, hidden.shape[-1]), up.t(), alpha=scale
    )
    return flat.view(y.shape)


def added_at_pixels(y: Tensor, hidden: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return `y + scale * up . hidden` at every pixel: y (n, o, ..), hidden (n, r, ..), up (o, r).

    The output has the memory format of `y`.
    """
    if hidden.dtype != y.dtype and not torch.is_autocast_enabled(y.device.type):
        kernel = up.reshape(*up.shape, *[1] * (y.dim() - 2))
        wide = _pointwise(hidden, kernel)
        return torch.add(y, wide, alpha=scale).to(y.dtype)
    if is_last(y):
        rows, inner = (t.movedim(1, -1).reshape(-1, t.shape[1]) for t in (y, hidden))
        flat = torch.addmm(rows, inner, up.t(), alpha=scale)
        images, outputs, *pixels = y.shape
        return flat.view(images, *pixels, outputs).movedim(-1, 1)
    whole = up.expand(y.shape[0], *up.shape)
    found = torch.baddbmm(y.flatten(2), whole, hidden.flatten(2), alpha=scale)
    return found.view(y.shape)


def _pointwise(x: Tensor, kernel: Tensor) -> Tensor:
    apply = (functional.conv1d, functional.conv2d, functional.conv3d)[x.dim() - 3]
    return apply(x, kernel)


def _beside(x: Tensor, weight: Tensor, pairs: Pairs) -> bool:
    """Whether all tensors are plain ones on one device, the weight of the input's dtype."""
    device, wide = x.device, pairs[0].down.dtype
    if type(x) is not Tensor or type(weight) not in (Tensor, Parameter):
        return False
    if x.dtype != weight.dtype or weight.device != device:
        return False
    for down, up, _ in pairs:  # a loop, this runs at every call
        if down.dtype != wide or up.dtype != wide or down.device != device or up.device != device:
            return False
    return True


def _mixed(x: Tensor, y: Tensor, down: Tensor) -> bool:
    cast = torch.is_autocast_enabled(x.device.type)
    return not cast and not (x.dtype == down.dtype == y.dtype)


def _stack(scales: tuple[float, ...], tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, float]:
    if len(scales) == 1:
        return tensors[0], tensors[1], scales[0]
    return stacked(
        [Pair(tensors[2 * k], tensors[2 * k + 1], scale) for k, scale in enumerate(scales)]
    )


def _forward(
    x: Tensor,
    dropped: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scales: tuple[float, ...],
    tensors: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the output, whose memory is its own and no view, and the rows between the factors.

    Those lie as columns (r, rows), here and in the backward pass: thin products of that shape are
    two to four times as fast as their transposes by the libraries of the CPU.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    flat = y.view(-1, weight.shape[0])
    if bias is None:
        torch.mm(rows, weight.t(), out=flat)
    else:
        torch.addmm(bias, rows, weight.t(), out=flat)
    down, up, scale = _stack(scales, tensors)
    given = rows if dropped is None else dropped.reshape(-1, x.shape[-1])
    hidden = down @ given.to(down.dtype).t()
    if down.dtype == y.dtype:
        flat.addmm_(hidden.t(), up.t(), alpha=scale)
    else:
        flat.add_(hidden.t() @ up.t(), alpha=scale)
    return y, hidden


class _Linear(torch.autograd.Function):
    """`(x, dropped or None, weight, bias, scales, down, up, down, up, ..) -> (y, hidden)`.

    Keeps the pairs' input and the rows between the factors, and only where a gradient needs them.
    `hidden` is an output so that it can be differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, dropped: Any, weight: Any, bias: Any, scales: Any, *tensors: Any
    ) -> Any:
        y, hidden = _forward(x, dropped, weight, bias, scales, tensors)
        needs = ctx.needs_input_grad
        downs, ups = any(needs[5::2]), any(needs[6::2])
        given = x if dropped is None else dropped
        ctx.save_for_backward(
            x if needs[2] else None,
            given if downs else None,
            hidden if ups else None,
            weight,
            *tensors,
        )
        ctx.scales, ctx.shape, ctx.apart = scales, x.shape, dropped is not None
        ctx.set_materialize_grads(False)
        return y, hidden

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, given, hidden, weight, *tensors = ctx.saved_tensors
        needs, scales, shape = ctx.needs_input_grad, ctx.scales, ctx.shape
        grad, further = grads
        if grad is None:
            grad = weight.new_zeros(*shape[:-1], weight.shape[0])
        rows = grad.reshape(-1, grad.shape[-1])
        down, up, scale = _stack(scales, tensors)
        wide = rows.to(down.dtype)
        inner: Any = None
        if needs[0] or needs[1] or given is not None:
            inner = up.t() @ wide.t()
            inner = inner if scale == 1.0 else inner * scale
            inner = inner if further is None else inner + further
        found: list[Any] = [None] * len(needs)
        if needs[0]:
            back = rows @ weight
            found[0] = (back if ctx.apart else _plus(back, inner, down)).view(shape)
        if needs[1]:
            found[1] = (inner.t() @ down).to(rows.dtype).view(shape)
        if needs[2]:
            found[2] = rows.t() @ x.reshape(-1, shape[-1])
        if needs[3]:
            found[3] = rows.sum(0)
        start = 0
        for place, one in enumerate(scales):
            end = start + tensors[2 * place].shape[0]
            if needs[5 + 2 * place]:
                flat = given.reshape(-1, shape[-1]).to(down.dtype)
                found[5 + 2 * place] = inner[start:end] @ flat
            if needs[6 + 2 * place]:
                product = (hidden[start:end] @ wide).t()
                found[6 + 2 * place] = product if one == 1.0 else product * one
            start = end
        return tuple(found)


def _plus(back: Tensor, inner: Tensor, down: Tensor) -> Tensor:
    if back.dtype == down.dtype:
        return back.addmm_(inner.t(), down)
    return back.add_(inner.t() @ down)
