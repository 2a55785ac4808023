"""Muon: momentum, orthogonalised."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix, iterated_in, newton_schulz
from tnc.optim.options import Share
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Orthogonalised


@rules.register("muon")
class Muon(Orthogonalised, Rule):
    """`B <- mu B + (1 - mu) G`; `W <- (1 - lr wd) W - lr s NS(lerp(G, B, mu))`.

    NS is `newton_schulz`, in `precision`: 'float32', 'bfloat16', or 'auto' (`iterated_in`).
    `adjust` sets s: 'original' is `sqrt(max(1, m / n))`, 'rms' is `.2 sqrt(max(m, n))`, whose
    updates are as large as Adam's. A parameter of more than two axes is read as a matrix by
    `matrix_cut`: a kernel as outputs by the rest; `torch.optim.Muon` takes matrices only. State:
    `momentum_buffer`, as large as the parameter. (Jordan et al., 2024; `rms`: Liu et al.,
    Muon is Scalable, 2025.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {"momentum_buffer": Kind.COVECTOR}

    momentum: Share = 0.95
    weight_decay = 0.1
    nesterov: bool = True
    adjust: Literal["original", "rms"] = "original"

    def refuses(self, weight: Tensor, group: Group) -> str:
        return "" if weight.dim() >= 2 else "it is no matrix, which could be orthogonalised"

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return {"momentum_buffer": torch.zeros_like(weight, memory_format=torch.contiguous_format)}

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        momentum = group["momentum"]
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        wanted = torch.lerp(gradient, buffer, momentum) if group["nesterov"] else buffer
        matrix = as_matrix(wanted)
        dtype = iterated_in(matrix, group["precision"])
        found = newton_schulz(matrix, group["iterations"], dtype=dtype)
        m, n = found.shape
        scale = max(1.0, m / n) ** 0.5 if group["adjust"] == "original" else 0.2 * max(m, n) ** 0.5
        self.decay_(weight, state, group)
        weight.add_(found.reshape(weight.shape), alpha=-group["lr"] * scale)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * prod(shape)
