"""Steps to the border of a trust region: one family of Muon, sign descent and normalised SGD."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix
from tnc.optim.options import Share
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Orthogonalised
from tnc.optim.steepest import Norm, asked, steepest


@rules.register("trust-region")
class TrustRegion(Orthogonalised, Rule):
    """`m <- mu m + (1 - mu) G`; `W <- (1 - lr wd) W + lr argmin over |D| <= 1 of <m, D>`.

    `norm` is 'spectral' (the argmin is `-U V^T`: Muon without its momentum's look ahead),
    'infinity' (`-sign(m)`: sign descent) or 'frobenius' (`-m / |m|`: normalised SGD). The spectral
    one is by Newton-Schulz, or with `exact` by a decomposition. A parameter of more than two axes
    is read as a matrix by `matrix_cut`; a vector is a matrix of one row. State:
    `momentum_buffer`, as large as the parameter. (Kovalev, Understanding Gradient Orthogonalization
    for Deep Learning via Non-Euclidean Trust-Region Optimization, 2025.)

    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(2)); w.grad = torch.tensor([3.0, -4.0])
    >>> TrustRegion([w], lr=0.5, norm="frobenius").step(); w.data
    tensor([-0.3000,  0.4000])
    """

    kinds: ClassVar[Mapping[str, Kind]] = {"momentum_buffer": Kind.COVECTOR}

    norm: Norm = "spectral"
    momentum: Share = 0.95
    exact: bool = False

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return {"momentum_buffer": torch.zeros_like(weight, memory_format=torch.contiguous_format)}

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        found = steepest(as_matrix(buffer), *asked(group))
        self.decay_(weight, state, group)
        weight.add_(found.reshape(weight.shape), alpha=-group["lr"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * prod(shape)
