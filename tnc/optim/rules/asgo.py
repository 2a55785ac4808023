"""ASGO: one-sided preconditioning by the smaller Gram matrix."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix, matrix_cut, matrix_shape
from tnc.optim.roots import Roots, inverse_root
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Moments


@rules.register("asgo")
class Asgo(Moments, Rule):
    """`m <- b1 m + (1 - b1) G`; `A <- b2 A + (1 - b2) G G^T`; `U = A^(-1/2) m`.

    Then `W <- (1 - lr wd) W - lr .2 sqrt(m n) U / |U|_F`: every update has the size of Adam's. The
    Gram matrix is that of the shorter side (`G^T G`, from the right, for a tall matrix), its ridge
    `eps` of the mean eigenvalue, its root by `roots`: 'eigh' or 'newton'. A parameter of more than
    two axes is read as a matrix by `matrix_cut`: a kernel as outputs by the rest.

    State: `exp_avg`, as large as the parameter, and `gram` (d, d), d the shorter side. (An et al.,
    ASGO: Adaptive Structured Gradient Optimization, 2025.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {"exp_avg": Kind.COVECTOR, "gram": Kind.GRAM}

    lr = 1e-2
    betas = (0.9, 0.8)
    eps = 1e-6
    roots: Roots = "eigh"
    weight_decay = 0.1

    def refuses(self, weight: Tensor, group: Group) -> str:
        return "" if weight.dim() >= 2 else "it is no matrix, of which a side could be shorter"

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        side = min(matrix_shape(tuple(weight.shape)))
        return {
            "exp_avg": torch.zeros_like(weight, memory_format=torch.contiguous_format),
            "gram": weight.new_zeros(side, side),
        }

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        first, second = group["betas"]
        mean = as_matrix(state["exp_avg"].lerp_(gradient, 1 - first))
        matrix = as_matrix(gradient)
        wide = _is_wide(matrix_shape(tuple(weight.shape)))
        gram = matrix @ matrix.mT if wide else matrix.mT @ matrix
        state["gram"].lerp_(gram, 1 - second)
        root = inverse_root(state["gram"], 2, group["eps"], group["roots"])
        found = root @ mean if wide else mean @ root
        size = 0.2 * weight.numel() ** 0.5 / found.norm().clamp_min(1e-30)
        self.decay_(weight, state, group)
        weight.add_(found.mul_(size).reshape(weight.shape), alpha=-group["lr"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * (prod(shape) + min(matrix_shape(shape)) ** 2)

    def grams(self, shape: tuple[int, ...], group: Group) -> dict[str, tuple[int, ...]]:
        cut = matrix_cut(shape)
        wide = _is_wide(matrix_shape(shape))
        return {"gram": tuple(range(cut) if wide else range(cut, len(shape)))}


def _is_wide(shape: tuple[int, int]) -> bool:
    return shape[0] <= shape[1]
