"""Tensor-GaLore: Adam on the gradient seen through one projector an axis."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tnc.optim.kinds import Group
from tnc.optim.multilinear import Multilinear
from tnc.optim.projections import biased_adam_direction
from tnc.optim.rule import rules


@rules.register("tensor-galore")
class TensorGaLore(Multilinear):
    """`C = G x_1 P_1 x_2 P_2 ...`, Adam on C, `W -= lr scale (u x_1 P_1^T x_2 P_2^T ...)`.

    P_k holds the leading singular vectors of the gradient's unfolding along axis k, `rank` at most,
    taken anew every `update_every` steps; an axis no longer than its rank is left as it is. So with
    a rank beyond all axes this is Adam. In the release the projector of a tensor cannot be built,
    what comes back is the raw projected gradient instead of Adam's step, and projectors are never
    taken anew.

    State of a tensor (n1, n2, ...): `exp_avg` and `exp_avg_sq` (r1, r2, ...), `projectors` flat,
    `sum r_k n_k` over axes with r_k below n_k. (George et al., Tensor-GaLore, 2025; Zhao et al.,
    GaLore, ICML 2024.)
    """

    def direction(self, core: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        return biased_adam_direction(core, state, group)
