"""Grass: Adam on a few rows of each gradient."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from tnc.optim.kinds import Group, State
from tnc.optim.projections import draws, sampled
from tnc.optim.rule import rules
from tnc.optim.selected import Selected


@rules.register("grass")
class Grass(Selected):
    """Adam on r of the n lines along a matrix's shorter side; the others stay as they are.

    `choice`: 'top' takes the lines of largest norm, 'norm' draws lines by their norms without
    replacement, 'uniform' draws them evenly; anew every `update_every` steps. These are the
    paper's choices that need no rescaling. The paper sets moments to zero when the choice changes;
    here a line that is chosen again keeps them, which is exact, and one that enters is debiased by
    its own age (see `tnc.optim.selected`).

    State of a matrix (m, n), m at least n: `exp_avg` and `exp_avg_sq` (m, r), `index` and `age`
    (r). (Muhamed et al., Grass, EMNLP 2024.)
    """

    random: ClassVar[bool] = True

    choice: Literal["top", "norm", "uniform"] = "top"
    seed: int = 0

    def coordinates(self, rows: Tensor) -> Tensor:
        return rows

    def outside(self, small: Tensor, index: Tensor, size: int) -> Tensor:
        return small.new_zeros(small.shape[0], size).index_copy_(1, index.long(), small)

    def choose(self, found: Tensor, rank: int, state: State, group: Group) -> Tensor:
        norms: Tensor = found.norm(dim=0)
        if group["choice"] == "top":
            top: Tensor = norms.topk(rank).indices
            return top
        weights = norms if group["choice"] == "norm" else torch.ones_like(norms)
        return sampled(weights, rank, draws(state))
