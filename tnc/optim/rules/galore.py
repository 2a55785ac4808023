"""GaLore: Adam in a low-rank subspace of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.projections import (
    biased_adam_direction,
    down,
    is_right,
    projected_shape,
    top_subspace,
    up,
)
from tnc.optim.rule import Rule, rules


@rules.register("galore")
class GaLore(Rule):
    """`g = G P^T` in the leading singular subspace P of a gradient, Adam on g, `W -= lr scale u P`.

    P is taken anew from the gradient every `update_every` steps of the optimizer; moments stay in
    the coordinates of the old one, as in the paper. With a P that never changes this is Adam on B
    in `W + B P`. A parameter of more than two axes is read as the matrix nearest to square.

    State of a matrix (m, n), m at least n: `exp_avg` and `exp_avg_sq` (m, r), `projector` (r, n).
    (Zhao et al., GaLore, ICML 2024, algorithm 2; scale is the paper's alpha.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.OPAQUE,
        "exp_avg_sq": Kind.OPAQUE,
        "projector": Kind.OPAQUE,
        "right": Kind.OPAQUE,
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        rank: int = 128,
        update_every: int = 200,
        scale: float = 0.25,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        options = {
            "lr": lr,
            "rank": rank,
            "update_every": update_every,
            "scale": scale,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, options)

    def refuses(self, weight: Tensor, group: Group) -> str:
        return "" if weight.dim() >= 2 else "it is no matrix, which could be projected"

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        matrix = as_matrix(weight)
        shape = projected_shape((matrix.shape[0], matrix.shape[1]), group["rank"])
        right = is_right(matrix)
        side, rank = matrix.shape[right], shape[right]
        return {
            "exp_avg": weight.new_zeros(shape),
            "exp_avg_sq": weight.new_zeros(shape),
            "projector": weight.new_zeros(rank, side),
            "right": right,
        }

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        matrix, right = as_matrix(gradient), state["right"]
        if (int(state["step"]) - 1) % group["update_every"] == 0:
            state["projector"] = top_subspace(matrix, len(state["projector"]), right)
        projector = state["projector"]
        direction = biased_adam_direction(down(matrix, projector, right), state, group)
        change = up(direction, projector, right).reshape(weight.shape)
        weight.add_(change, alpha=-group["lr"] * group["scale"])
        self.decay_(weight, state, group)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        m, n = matrix_shape(shape)
        small = projected_shape((m, n), group["rank"])
        return 4 * (2 * prod(small) + min(small) * min(m, n))
