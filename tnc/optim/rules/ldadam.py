"""LDAdam: Adam in a subspace that turns at every step, and moments that turn with it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.options import Count, Share
from tnc.optim.projections import (
    adam_direction,
    projected_shape,
    projected_start,
    refuses_projection,
    top_subspace,
)
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Moments
from tnc.optim.subspaces import power_step, rotated_moments, tall


@rules.register("ldadam")
class LdAdam(Moments, Rule):
    """`A = G + E`; P turns towards `s m_hat P + (1 - s) A`; moments turn; Adam on `A P^T`.

    P takes one power iteration a step; s is `mixing`. Moments are debiased, turned by
    `R = P_new P_old^T` (`rotated_moments`) and biased again. What compressing gradient and momentum
    left out returns with the next gradient: `E = A - A P^T P + b1 / (1 - b1) (m P_old - m R^T P)`,
    so that `m_new P + (1 - b1) E = b1 m P_old + (1 - b1) A`: nothing is lost.

    State of a matrix (m, n), m at least n: `exp_avg`, `exp_avg_sq` (m, r), `projector` (r, n), and
    with `error_feedback` `error` (m, n), all in the state, so that resuming is exact. (Robert et
    al., LDAdam: Adaptive Optimization from Low-Dimensional Gradient Statistics, ICLR 2025,
    algorithm 1.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.OPAQUE,
        "exp_avg_sq": Kind.OPAQUE,
        "projector": Kind.OPAQUE,
        "error": Kind.OPAQUE,
        "right": Kind.OPAQUE,
    }

    rank: Count = 128
    mixing: Share = 0.908
    betas = (0.908, 0.99)
    error_feedback: bool = True

    def refuses(self, weight: Tensor, group: Group) -> str:
        return refuses_projection(weight)

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        matrix = as_matrix(weight)
        found = projected_start(matrix, group["rank"])
        if group["error_feedback"]:
            found["error"] = matrix.new_zeros(matrix.shape)
        return found

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        right, projector = state["right"], state["projector"]
        matrix = tall(as_matrix(gradient), right)
        error = tall(state["error"], right) if group["error_feedback"] else None
        if error is not None:
            matrix = error.add_(matrix)
        if int(state["step"]) == 1:
            new = top_subspace(matrix, len(projector), 1)
        else:
            new = self._turn(matrix, state, group)
        projected = matrix @ new.mT
        if error is not None:
            error.addmm_(projected, new, alpha=-1)
        projector.copy_(new)
        direction = adam_direction(projected if right else projected.mT, state, group)
        change = tall(tall(direction, right) @ new, right).reshape(weight.shape)
        self.decay_(weight, state, group)
        weight.add_(change, alpha=-group["lr"])

    def subspace(self, matrix: Tensor, mean: Tensor, projector: Tensor, group: Group) -> Tensor:
        """Return the next subspace `(r, n)`, from the debiased momentum `(m, r)` in the old one."""
        return power_step(matrix, mean, projector, group["mixing"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        m, n = matrix_shape(shape)
        small = projected_shape((m, n), group["rank"])
        error = m * n if group["error_feedback"] else 0
        return 4 * (2 * prod(small) + min(small) * min(m, n) + error)

    def _turn(self, matrix: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        """Turn the moments into the next subspace and return it; add what they lose to `matrix`.

        `matrix` is the error's own memory where there is error feedback. The loss lies outside of
        the new subspace, so that it does not touch this step's projected gradient.
        """
        first, second = group["betas"]
        old, done = state["projector"], float(state["step"]) - 1
        mean, square = (tall(state[slot], state["right"]) for slot in ("exp_avg", "exp_avg_sq"))
        whole = 1 - first**done, 1 - second**done
        new = self.subspace(matrix, mean / whole[0], old, group)
        moved, spread = rotated_moments(mean / whole[0], square / whole[1], old, new)
        if group["error_feedback"]:
            share = first / (1 - first) * whole[0]
            lost = torch.addmm(mean @ old / whole[0], moved, new, alpha=-1)
            matrix.add_(lost, alpha=share)
        mean.copy_(moved).mul_(whole[0])
        square.copy_(spread).mul_(whole[1])
        return new
