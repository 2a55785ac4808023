"""GradNormLoRP: GaLore on the directions of a matrix's rows, Adam on their lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.projections import (
    biased_adam_direction,
    down,
    due,
    facing,
    projected_floats,
    projected_start,
    refuses_projection,
    top_subspace,
    up,
)
from tnc.optim.rule import STEP, Rule, rules
from tnc.optim.shared_options import Renewed


@rules.register("gradnorm-lorp")
class GradNormLoRP(Renewed, Rule):
    """`W = a V / |V|` row by row; GaLore on V with scale, Adam on the lengths a.

    `grad_a = <G, V> / |V|`; `grad_V = a / |V| (G - grad_a V / |V|)`, which is orthogonal to V row
    by row; `V -= lr scale Adam(grad_V P^T) P`; `a -= lr Adam(grad_a)`, then decayed. These are the
    gradients of the weight-normed matrix. The release leaves the radial part in grad_V, and takes
    the length from `|V|` again at every step, so that what a learned is lost: both mended.

    V itself is not stored: it is W, each row times `stretch = |V| / a`. A row of zeros has no
    direction; it takes a plain step and is normed from then on.

    State of a matrix (m, n), m at least n: `exp_avg` and `exp_avg_sq` (m, r), `projector` (r, n),
    `stretch`, `length_avg` and `length_avg_sq` (m, 1). Rows are those of the matrix that
    `matrix_cut` makes: the outputs of a kernel. (Huang et al., Gradient Weight-normalized Low-rank
    Projection for Efficient LLM Training, AAAI 2025.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.OPAQUE,
        "exp_avg_sq": Kind.OPAQUE,
        "projector": Kind.OPAQUE,
        "right": Kind.OPAQUE,
        "stretch": Kind.VECTOR,
        "length_avg": Kind.OPAQUE,
        "length_avg_sq": Kind.OPAQUE,
    }

    def refuses(self, weight: Tensor, group: Group) -> str:
        return refuses_projection(weight)

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        matrix = as_matrix(weight)
        column = matrix.new_zeros(len(matrix), 1)
        return projected_start(matrix, group["rank"]) | {
            "stretch": torch.ones_like(column),
            "length_avg": column,
            "length_avg_sq": torch.zeros_like(column),
        }

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        matrix, stretch = as_matrix(weight), state["stretch"]
        norms = matrix.norm(dim=1, keepdim=True)
        length = norms * stretch.sign()
        inner, radial = tangent(matrix, as_matrix(gradient), norms)
        change = self._turn(inner / stretch, state, group) / stretch
        change.mul_(-group["lr"] * group["scale"]).add_(matrix)
        slots = {
            "exp_avg": state["length_avg"],
            "exp_avg_sq": state["length_avg_sq"],
            STEP: state[STEP],
        }
        step = biased_adam_direction(radial * stretch.sign(), slots, group)
        wanted = length - group["lr"] * step
        self.decay_(wanted, state, group)
        found = change.norm(dim=1, keepdim=True)
        usable = (norms > 0) & (found > 0) & (wanted != 0)
        factor = torch.where(usable, wanted / (stretch.sign() * found), 1.0)
        state["stretch"] = torch.where(usable, stretch.abs() * found / wanted, 1.0)
        weight.copy_(change.mul_(factor).reshape(weight.shape))

    def _turn(self, inner: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        """Return GaLore's change of V by its gradient, before `-lr scale`."""
        right, rank = state["right"], len(state["projector"])
        if due(state, group):
            found = top_subspace(inner, rank, right)
            state["projector"] = facing(found, state["projector"])
        projector = state["projector"]
        small = down(inner, projector, right)
        return up(biased_adam_direction(small, state, group), projector, right)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        matrix = matrix_shape(shape)
        return 4 * (projected_floats(matrix, group["rank"]) + 3 * matrix[0])


def tangent(matrix: Tensor, gradient: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the part of a gradient orthogonal to each row, and its length along the row (m, 1)."""
    unit = matrix / torch.where(norms > 0, norms, 1.0)
    radial = (gradient * unit).sum(1, keepdim=True)
    return gradient - radial * unit, radial
