"""GaLore: Adam in a low-rank subspace of the gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tnc.optim.kinds import Group, State
from tnc.optim.projected import Projected
from tnc.optim.projections import biased_adam_direction, down, top_subspace, up
from tnc.optim.rule import rules


@rules.register("galore")
class GaLore(Projected):
    """`g = G P^T` in the leading singular subspace P of a gradient, Adam on g, `W -= lr scale u P`.

    P is taken anew from the gradient every `update_every` steps of the optimizer; moments stay in
    the coordinates of the old one, as in the paper. With a P that never changes this is Adam on B
    in `W + B P`. A parameter of more than two axes is read as a matrix by `matrix_cut`.

    State of a matrix (m, n), m at least n: `exp_avg` and `exp_avg_sq` (m, r), `projector` (r, n).
    (Zhao et al., GaLore, ICML 2024, algorithm 2; scale is the paper's alpha.)
    """

    def subspace(self, matrix: Tensor, state: State, group: Group) -> Tensor:
        return top_subspace(matrix, len(state["projector"]), state["right"])

    def change(self, matrix: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        projector, right = state["projector"], state["right"]
        small = down(matrix, projector, right)
        return up(biased_adam_direction(small, state, group), projector, right)
