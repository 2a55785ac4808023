"""DCT-AdamW: AdamW on the strongest cosines of each row of the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

from torch import Tensor

from tnc.optim.cosines import cosines, from_cosines
from tnc.optim.kinds import Group, Kind, State
from tnc.optim.rule import rules
from tnc.optim.selected import Selected, strongest


@rules.register("dct-adamw")
class DctAdamW(Selected):
    """`S = (G + E) Q`; the r columns of S with the largest absolute sums are g; AdamW on them.

    Q is the orthonormal cosine transform of the shorter side, done by FFT and never stored. The
    choice is made anew every `update_every` steps. A cosine that stays keeps both moments, as the
    rotation `Q_old^T Q_new` of the paper does, which is a selection here; one that enters is
    debiased by its own age (see `tnc.optim.selected`; the release gives it a step 3.2 times too
    large). With `error_feedback`, `E <- G + E - g Q_r^T` is kept, in float32: as large as the
    parameter. The release keeps its step count outside of the state, so that it cannot resume.

    State of a matrix (m, n), m at least n: `exp_avg` and `exp_avg_sq` (m, r), `index` and `age`
    (r), `error` (m, n) with error feedback. (Modoranu et al., FFT-based Dynamic Subspace Selection
    for Low-Rank Adaptive Optimization of Large Language Models, 2025.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {**Selected.kinds, "error": Kind.OPAQUE}

    update_every = 1
    error_feedback: bool = False

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        found = super().start(weight, group)
        if group["error_feedback"]:
            long, rest = found["exp_avg"].shape[0], weight.numel()
            found["error"] = weight.new_zeros(long, rest // long)
        return found

    def coordinates(self, rows: Tensor) -> Tensor:
        return cosines(rows)

    def outside(self, small: Tensor, index: Tensor, size: int) -> Tensor:
        spread = small.new_zeros(small.shape[0], size)
        return from_cosines(spread.index_copy_(1, index.long(), small))

    def choose(self, found: Tensor, rank: int, state: State, group: Group) -> Tensor:
        return strongest(found, rank)

    def received(self, rows: Tensor, state: dict[str, Any]) -> Tensor:
        return state["error"].add_(rows) if "error" in state else rows

    def left(self, rows: Tensor, inside: Tensor, state: dict[str, Any]) -> None:
        if "error" in state:
            rows.sub_(self.outside(inside, state["index"], rows.shape[1]))

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        error = 4 * prod(shape) if group["error_feedback"] else 0
        return super().state_bytes(shape, group) + error
