"""Merge adjacent linear maps with nothing between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from tnc.rewrite import Exact, InParts, Pass, Subject, passes
from tnc.rewrite.adjoining import apart_in_training
from tnc.rewrite.edit import is_watched, replace_module_


@passes.register("merge-linear")
@dataclass(frozen=True)
class MergeLinear(Pass):
    """`W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)` where that has fewer parameters.

    Only for `nn.Linear` layers called once each, the second the sole reader of the first, with
    nothing between them in training either (dropout). The first keeps the product, the second
    becomes an identity.
    """

    contract = Exact(1e-4)
    stage = "prepare"
    in_parts = InParts(looks_for=("linear-linear",))

    def apply(self, subject: Subject) -> Subject:
        lines = []
        links = [link for link in subject.trace.links if link.kind == "linear-linear"]
        apart = apart_in_training(subject, [(link.first, link.second) for link in links])
        for link in links:
            first = subject.model.get_submodule(link.first)
            second = subject.model.get_submodule(link.second)
            reason = _cannot(subject, link.first, first, link.second, second)
            reason = reason or apart.get((link.first, link.second), "")
            if reason:
                lines.append(f"left {link.first} and {link.second}: {reason}")
                continue
            merged = _merged(cast("nn.Linear", first), cast("nn.Linear", second))
            replace_module_(subject.model, link.first, merged)
            replace_module_(subject.model, link.second, nn.Identity())
            lines.append(f"merged {link.second} into {link.first}")
        return subject.edited(*lines)


def _cannot(subject: Subject, at: str, first: nn.Module, then: str, second: nn.Module) -> str:
    if type(first) is not nn.Linear or type(second) is not nn.Linear:
        return "not both are nn.Linear"
    if is_watched(first) or is_watched(second):
        return "a hook watches one"
    calls = subject.trace.calls
    if calls.get(at, 1) != 1 or calls.get(then, 1) != 1:
        return "one is called more than once"
    merged = first.in_features * second.out_features
    if merged > first.weight.numel() + second.weight.numel():
        return f"the product has more parameters ({merged:,})"
    if first.weight.requires_grad != second.weight.requires_grad:
        return "one is frozen and the other is not"
    weights = [p for _, p in subject.model.named_parameters(remove_duplicate=False)]
    if any(sum(p is w for p in weights) > 1 for w in (first.weight, second.weight)):
        return "a weight is tied"
    return ""


def _merged(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        weight = second.weight.double() @ first.weight.double()
        bias: torch.Tensor | None = None
        if first.bias is not None:
            bias = second.weight.double() @ first.bias.double()
        if second.bias is not None:
            bias = second.bias.double() + (bias if bias is not None else 0)
        made = nn.Linear(first.in_features, second.out_features, bias=bias is not None)
        made = made.to(device=first.weight.device, dtype=first.weight.dtype)
        made.weight.copy_(weight)
        made.weight.requires_grad_(first.weight.requires_grad)
        if bias is not None:
            made.bias.copy_(bias)
    return made.train(first.training)
