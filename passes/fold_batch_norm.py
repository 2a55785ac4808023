"""Fold batch norms in eval mode into the convolution or linear layer before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from tnc.rewrite import Exact, InParts, Pass, Subject, passes
from tnc.rewrite.edit import is_watched


@passes.register("fold-batch-norm")
@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """`bn(conv(x)) = conv'(x)` with `W' = W s`, `b' = (b - mean) s + beta`, `s = gamma / std`.

    Only where the batch norm is the sole reader of the layer's output, is in eval mode and keeps
    running statistics; anything else is left and said in the record. The batch norm becomes an
    identity, so that code that refers to it goes on working.
    """

    contract = Exact(1e-4)
    stage = "prepare"
    in_parts = InParts(looks_for=("conv-batchnorm", "linear-batchnorm"))

    def apply(self, subject: Subject) -> Subject:
        lines = []
        for link in subject.trace.links:
            if link.kind not in ("conv-batchnorm", "linear-batchnorm"):
                continue
            layer = subject.model.get_submodule(link.first)
            norm = subject.model.get_submodule(link.second)
            reason = _cannot(subject.model, layer, norm)
            if reason:
                lines.append(f"left {link.second}: {reason}")
                continue
            _fold_(cast("nn.Linear | _ConvNd", layer), cast("_NormBase", norm))
            parent, _, name = link.second.rpartition(".")
            setattr(subject.model.get_submodule(parent), name, nn.Identity())
            lines.append(f"folded {link.second} into {link.first}")
        return subject.edited(*lines)


def _cannot(model: nn.Module, layer: nn.Module, norm: nn.Module) -> str:
    if norm.training:
        return "it is in training mode and still updates its statistics; call model.eval() first"
    if getattr(norm, "running_mean", None) is None:
        return "it keeps no running statistics"
    if type(layer) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear):
        return f"a {type(layer).__name__} is before it"
    if is_watched(layer) or is_watched(norm):
        return "a hook watches it or the layer before it"
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is layer.weight]
    if len(names) > 1:
        return f"the weight before it is tied ({', '.join(names)})"
    return ""


def _fold_(layer: nn.Linear | _ConvNd, norm: _NormBase) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None  # _cannot has seen to it
    with torch.no_grad():
        weight = layer.weight
        deviation = (variance.double() + norm.eps).sqrt()
        gamma = norm.weight.double() if norm.weight is not None else torch.ones_like(deviation)
        beta = norm.bias.double() if norm.bias is not None else torch.zeros_like(deviation)
        scale = gamma / deviation
        old = layer.bias.double() if layer.bias is not None else torch.zeros_like(deviation)
        bias = (old - mean.double()) * scale + beta
        shape = (-1, *[1] * (weight.dim() - 1))
        weight.copy_((weight.double() * scale.view(shape)).to(weight.dtype))
        if layer.bias is not None:
            layer.bias.copy_(bias.to(layer.bias.dtype))
        else:
            layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)
