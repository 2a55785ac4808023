"""SARA: GaLore in a subspace that is drawn, so that it does not freeze."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from tnc.optim.kinds import Group, State
from tnc.optim.projected import Projected
from tnc.optim.projections import biased_adam_direction, down, draws, sampled_subspace, up
from tnc.optim.rule import rules


@rules.register("sara")
class Sara(Projected):
    """GaLore whose r singular vectors are drawn by their singular values, without replacement.

    `g = G P^T`, Adam on g, `W -= lr scale u P`; the rows of P are singular vectors of the gradient,
    largest first, taken anew every `update_every` steps. A vector whose singular value dwarfs the
    rest is always drawn; with r as large as the shorter side this is GaLore.

    State of a matrix (m, n), m at least n: `exp_avg` and `exp_avg_sq` (m, r), `projector` (r, n).
    (Zhang et al., Breaking the Frozen Subspace, NeurIPS 2025.)
    """

    random: ClassVar[bool] = True

    seed: int = 0

    def subspace(self, matrix: Tensor, state: State, group: Group) -> Tensor:
        return sampled_subspace(matrix, len(state["projector"]), state["right"], draws(state))

    def change(self, matrix: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        projector, right = state["projector"], state["right"]
        small = down(matrix, projector, right)
        return up(biased_adam_direction(small, state, group), projector, right)
