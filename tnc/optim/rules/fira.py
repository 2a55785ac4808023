"""Fira: GaLore with what the subspace leaves out, scaled as Adam scales what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind, State
from tnc.optim.options import Range
from tnc.optim.projected import Projected
from tnc.optim.projections import adam_ratio, debiasing, down, top_subspace, up
from tnc.optim.rule import rules

FLOOR = 1e-8
"""Added to norms that divide, as in the release."""


@rules.register("fira")
class Fira(Projected):
    """`W -= lr scale (u P + phi (G - g P))`, `g = G P^T`, u Adam's step on g, `phi = |u| / |g|`.

    phi is one number for each row of g (each column where the shorter side is the first). The norm
    of `phi (G - g P)` may grow by the factor `limit` a step; what exceeds it is scaled back. phi
    and the limit are of `m / (sqrt(v) + eps)`, before the debiasing, as in the release, whose
    residual is `G - scale g P`: with a scale other than 1 that is no residual and is not copied.

    State of a matrix (m, n), m at least n: `exp_avg` and `exp_avg_sq` (m, r), `projector` (r, n),
    `residual_norm` (). (Chen et al., Fira, 2024.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {**Projected.kinds, "residual_norm": Kind.OPAQUE}

    limit: Annotated[float, Range(1)] = 1.01

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return super().start(weight, group) | {"residual_norm": weight.new_zeros(())}

    def subspace(self, matrix: Tensor, state: State, group: Group) -> Tensor:
        return top_subspace(matrix, len(state["projector"]), state["right"])

    def change(self, matrix: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        projector, right = state["projector"], state["right"]
        small = down(matrix, projector, right)
        ratio = adam_ratio(small, state, group)
        phi = ratio.norm(dim=right, keepdim=True) / (small.norm(dim=right, keepdim=True) + FLOOR)
        lifted = up(small, projector, right)
        residual = torch.sub(matrix, lifted, out=lifted).mul_(phi)
        before, norm = state["residual_norm"], residual.norm()
        growth = torch.where(before > 0, norm / (before + FLOOR), 0.0) / group["limit"]
        excess = growth.clamp_min(1.0)
        state["residual_norm"] = norm / excess
        found = up(ratio, projector, right).addcdiv_(residual, excess)
        return found.mul_(debiasing(state, group))

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return super().state_bytes(shape, group) + 4
