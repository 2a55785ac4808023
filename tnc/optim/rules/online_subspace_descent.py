"""Online Subspace Descent: GaLore whose subspace learns by gradient steps of its own."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.options import NonNegative
from tnc.optim.projections import (
    adam_direction,
    biased_adam_direction,
    down,
    is_right,
    projected_shape,
    refuses_projection,
    top_subspace,
    up,
)
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Subspace
from tnc.optim.subspaces import reconstruction, tall


@rules.register("online-subspace-descent")
class OnlineSubspaceDescent(Subspace, Rule):
    """`W -= lr scale up(Adam(G P^T))`, then a step of Adam on P down `|G P^T P - G|^2 / |G|^2`.

    P starts with the leading singular vectors of the first gradient and is not orthonormalised
    again. Its rate is `projector_lr`, times how far a scheduler has brought lr down from its
    `initial_lr`. State of a matrix (m, n), m at least n: `exp_avg`, `exp_avg_sq` (m, r);
    `projector`, `projector_avg`, `projector_avg_sq` (r, n). (Liang et al., Memory-Efficient LLM
    Training with Online Subspace Descent, NeurIPS 2024, algorithm 1.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.OPAQUE,
        "exp_avg_sq": Kind.OPAQUE,
        "projector": Kind.OPAQUE,
        "projector_avg": Kind.OPAQUE,
        "projector_avg_sq": Kind.OPAQUE,
        "right": Kind.OPAQUE,
    }

    lr = 1e-2
    projector_lr: NonNegative = 5e-3

    def refuses(self, weight: Tensor, group: Group) -> str:
        return refuses_projection(weight)

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        matrix = as_matrix(weight)
        small = projected_shape((matrix.shape[0], matrix.shape[1]), group["rank"])
        right = is_right(matrix)
        shape = small[right], matrix.shape[right]
        found: dict[str, Any] = {
            slot: weight.new_zeros(shape)
            for slot in ("projector", "projector_avg", "projector_avg_sq")
        }
        moments = {slot: weight.new_zeros(small) for slot in ("exp_avg", "exp_avg_sq")}
        return found | moments | {"right": right}

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        matrix, right = as_matrix(gradient), state["right"]
        projector = state["projector"]
        if int(state["step"]) == 1:
            projector.copy_(top_subspace(matrix, len(projector), right))
        direction = biased_adam_direction(down(matrix, projector, right), state, group)
        change = up(direction, projector, right).reshape(weight.shape)
        weight.add_(change, alpha=-group["lr"] * group["scale"])
        self.decay_(weight, state, group)
        _learn(projector, tall(matrix, right), state, group)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        m, n = matrix_shape(shape)
        small = projected_shape((m, n), group["rank"])
        return 4 * (2 * prod(small) + 3 * min(small) * min(m, n))


def _learn(projector: Tensor, matrix: Tensor, state: dict[str, Any], group: Group) -> None:
    size = matrix.norm()
    _, slope = reconstruction(matrix / size.clamp_min(1e-30), projector)
    own = {
        "step": state["step"],
        "exp_avg": state["projector_avg"],
        "exp_avg_sq": state["projector_avg_sq"],
    }
    start = group.get("initial_lr", group["lr"])
    rate = group["projector_lr"] * (group["lr"] / start if start else 0.0)
    projector.add_(adam_direction(slope, own, group), alpha=-rate)
