"""DASGO: ASGO with the diagonal of its Gram matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind, State
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Moments


def _held(state: State, group: Group) -> float:
    return float(1 - group["betas"][1] ** float(state["step"]))


@rules.register("dasgo")
class Dasgo(Moments, Rule):
    """`m <- b1 m + (1 - b1) G`; `a <- b2 a + (1 - b2) diag(G G^T)`; `U = m / sqrt(a)` by rows.

    Then `W <- (1 - lr wd) W - lr .2 sqrt(m n) U / |U|_F`, as ASGO: rows where there are fewer of
    them, else columns. A parameter of more than two axes is read as a matrix by `matrix_cut`.

    State: `exp_avg`, as large as the parameter, and `side_sq` (d), d the shorter side. (An et al.,
    ASGO: Adaptive Structured Gradient Optimization, 2025.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {"exp_avg": Kind.COVECTOR, "side_sq": Kind.DIAGONAL}
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {"side_sq": _held}

    lr = 1e-2
    betas = (0.9, 0.8)
    eps = 1e-6
    weight_decay = 0.1

    def refuses(self, weight: Tensor, group: Group) -> str:
        return "" if weight.dim() >= 2 else "it is no matrix, of which a side could be shorter"

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return {
            "exp_avg": torch.zeros_like(weight, memory_format=torch.contiguous_format),
            "side_sq": weight.new_zeros(min(matrix_shape(tuple(weight.shape)))),
        }

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        first, second = group["betas"]
        mean = as_matrix(state["exp_avg"].lerp_(gradient, 1 - first))
        along = _summed(mean)
        side = state["side_sq"].lerp_(as_matrix(gradient).square().sum(along), 1 - second)
        root = (side + group["eps"] * side.mean()).clamp_min(1e-30).rsqrt().unsqueeze(along)
        found = mean * root
        size = 0.2 * weight.numel() ** 0.5 / found.norm().clamp_min(1e-30)
        self.decay_(weight, state, group)
        weight.add_(found.mul_(size).reshape(weight.shape), alpha=-group["lr"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * (prod(shape) + min(matrix_shape(shape)))

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        """Return the squares spread evenly over the longer side."""
        matrix = as_matrix(weight)
        along = _summed(matrix)
        spread = (state["side_sq"] / matrix.shape[along]).unsqueeze(along)
        square = spread.expand(matrix.shape).reshape(weight.shape)
        return {"exp_avg": state["exp_avg"], "side_sq": square}

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        """Return the squares summed over the longer side."""
        matrix = as_matrix(moved["side_sq"])
        return {"exp_avg": moved["exp_avg"], "side_sq": matrix.sum(_summed(matrix))}


def _summed(matrix: Tensor) -> int:
    """Return the axis of a matrix's longer side."""
    return 1 if matrix.shape[0] <= matrix.shape[1] else 0
