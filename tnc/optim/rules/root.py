"""ROOT: orthogonalised momentum without outliers, by coefficients that fit the shape."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.coefficients import coefficients_for
from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix, iterated_in, newton_schulz
from tnc.optim.options import Share
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Orthogonalised


@rules.register("root")
class Root(Orthogonalised, Rule):
    """`B <- mu B + G`; `g = G + mu B`; `W <- (1 - lr wd) W - lr .2 sqrt(max(m, n)) NS(g - o)`.

    `o = sign(g) max(|g| - e, 0)` are the outliers of g above the `quantile` e of its absolute
    entries, so that `g - o` is g clipped at e. NS is Newton-Schulz with `coefficients_for` the
    shape. A parameter of more than two axes is read as a matrix by `matrix_cut`. State:
    `momentum_buffer`, as large as the parameter. (He et al., ROOT: Robust Orthogonalized Optimizer,
    2025; its tables of coefficients are for four shapes, ours are computed for every shape.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {"momentum_buffer": Kind.COVECTOR}

    momentum: Share = 0.95
    quantile: Share = 0.9
    weight_decay = 0.1

    def refuses(self, weight: Tensor, group: Group) -> str:
        return "" if weight.dim() >= 2 else "it is no matrix, which could be orthogonalised"

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return {"momentum_buffer": torch.zeros_like(weight, memory_format=torch.contiguous_format)}

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        momentum = group["momentum"]
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        wanted = as_matrix(clipped(torch.add(gradient, buffer, alpha=momentum), group["quantile"]))
        m, n = wanted.shape
        coefficients = coefficients_for(m, n, group["iterations"])
        found = newton_schulz(
            wanted, group["iterations"], coefficients, iterated_in(wanted, group["precision"])
        )
        self.decay_(weight, state, group)
        scale = 0.2 * max(m, n) ** 0.5
        weight.add_(found.reshape(weight.shape), alpha=-group["lr"] * scale)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * prod(shape)


def clipped(tensor: Tensor, quantile: float) -> Tensor:
    """Clip a tensor at a quantile of its absolute entries: what soft thresholding takes off it.

    The quantile is an entry, the lower one of two between which it lies.

    >>> clipped(torch.tensor([1.0, -2.0, 3.0, -90.0]), 0.7)
    tensor([ 1., -2.,  3., -3.])
    """
    sizes = tensor.abs().flatten()
    place = 1 + int(quantile * (sizes.numel() - 1))
    limit = sizes.kthvalue(place).values + 1e-9
    return torch.clamp(tensor, -limit, limit)
