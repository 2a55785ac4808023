"""Dion: the momentum orthogonalised at low rank, what is left stays in it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.options import Count, NonNegative, Share
from tnc.optim.rule import Rule, rules


@rules.register("dion")
class Dion(Rule):
    """`M <- M + G`; `P = qr(M Q)`; `R = M^T P`; `M <- M - (1 - mu) P R^T`; `Q <- R / |columns|`.

    Then `W <- (1 - lr wd) W - lr sqrt(m / n) P Q^T`. The momentum loses only what was used: it is
    its own error feedback. At full rank `P Q^T` nears the polar factor of M, and M shrinks to mu M.
    A parameter of more than two axes is read as a matrix by `matrix_cut`.

    State of a matrix (m, n): `momentum` (m, n), `basis` Q (n, r), drawn at random from the seed
    at the first step (`drawn` is 1 from then on).
    (Ahn et al., Dion: Distributed Orthonormalized Updates, 2025, algorithm 1.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "momentum": Kind.COVECTOR,
        "basis": Kind.OPAQUE,
        "drawn": Kind.OPAQUE,
    }
    random: ClassVar[bool] = True

    lr = 1e-2
    rank: Count = 128
    momentum: Share = 0.95
    weight_decay = 0.01
    eps: NonNegative = 1e-8
    seed: int = 0

    def refuses(self, weight: Tensor, group: Group) -> str:
        return "" if weight.dim() >= 2 else "it is no matrix, which could be orthogonalised"

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        m, n = matrix_shape(tuple(weight.shape))
        return {
            "momentum": torch.zeros_like(weight, memory_format=torch.contiguous_format),
            "basis": weight.new_zeros(n, min(group["rank"], m, n)),
            "drawn": 0,
        }

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        momentum = as_matrix(state["momentum"].add_(gradient))
        basis = state["basis"]
        if not state["drawn"]:
            basis.copy_(_drawn(basis, state["seed"]))
            state["drawn"] = 1
        left, _ = torch.linalg.qr(momentum @ basis)
        right = momentum.mT @ left
        momentum.addmm_(left, right.mT, alpha=group["momentum"] - 1)
        basis.copy_(right / (right.norm(dim=0) + group["eps"]))
        self.decay_(weight, state, group)
        m, n = momentum.shape
        change = (left @ basis.mT).reshape(weight.shape)
        weight.add_(change, alpha=-group["lr"] * (m / n) ** 0.5)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        m, n = matrix_shape(shape)
        rank: int = min(group["rank"], m, n)
        return 4 * (prod(shape) + n * rank)


def _drawn(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    found: Tensor = (drawn / drawn.norm(dim=0)).to(like)
    return found
