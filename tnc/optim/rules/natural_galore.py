"""Natural GaLore: the projected gradient, preconditioned by the last ones."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.multilinear import Multilinear, along, core_shape
from tnc.optim.options import Count, Positive
from tnc.optim.projections import biased_adam_direction
from tnc.optim.rule import rules


def natural(history: Tensor, newest: int, damping: float) -> Tensor:
    """Return `(damping I + H H^T)^-1 h` for one of the columns h of H; rows of `history` here.

    As `H (damping I + H^T H)^-1 e`, which is the same and cancels nothing: the difference that
    Woodbury's formula takes is lost in float32 once `|h|^2 / damping` is large. Solved in float64,
    by eigenvectors, whatever the conditioning.
    """
    wide = history.reshape(len(history), -1).double()
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    weights = vectors @ (vectors[newest] / (values.clamp_min(0) + damping))
    found: Tensor = (weights @ wide).to(history.dtype)
    return found.reshape(history.shape[1:])


@rules.register("natural-galore")
class NaturalGaLore(Multilinear):
    """`C = G x_1 P_1 x_2 P_2 ...`; `c = (damping I + H H^T)^-1 C`; Adam on c; up as `TensorGaLore`.

    H holds the last `window` projected gradients, this one among them. Every axis is projected, as
    in the release, so that the states of a matrix are r x r. When the projectors change, H is
    brought to the new ones (`P_new P_old^T` along every axis), which the release does not do;
    Adam's moments stay as they are, as in GaLore.

    State of a tensor (n1, n2, ...): `exp_avg` and `exp_avg_sq` (r1, r2, ...), `history`
    (window, r1, r2, ...), `projectors` flat, `sum r_k n_k` over axes with r_k below n_k. (Das,
    Natural GaLore, 2024.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = dict.fromkeys(
        ("exp_avg", "exp_avg_sq", "projectors", "history"), Kind.OPAQUE
    )

    window: Count = 20
    damping: Positive = 1e-3

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        found = super().start(weight, group)
        shape = core_shape(tuple(weight.shape), group["rank"])
        return found | {"history": weight.new_zeros(group["window"], *shape)}

    def moved(
        self, before: Mapping[int, Tensor], after: Mapping[int, Tensor], state: dict[str, Any]
    ) -> None:
        history = state["history"]
        for axis, projector in after.items():
            history = along(history, projector @ before[axis].mT, axis + 1)
        state["history"] = history.contiguous()

    def direction(self, core: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        newest = (int(state["step"]) - 1) % group["window"]
        state["history"][newest] = core
        found = natural(state["history"], newest, group["damping"])
        return biased_adam_direction(found, state, group)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        core = prod(core_shape(shape, group["rank"]))
        return super().state_bytes(shape, group) + 4 * int(group["window"]) * core
