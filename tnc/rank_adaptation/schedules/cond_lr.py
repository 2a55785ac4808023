"""Low-rank training with a bound on the condition number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tnc.errors import PlanError
from tnc.rank_adaptation.adapted import Adapted
from tnc.rank_adaptation.schedule import Schedule, schedules
from tnc.rank_adaptation.star import in_gauge, matrix_of, shaped_as, star_of
from tnc.rank_adaptation.tree import unfold


@schedules.register("cond-lr")
@dataclass(frozen=True)
class CondLR(Schedule):
    """Keep `W = U S V^T` with orthonormal U, V and singular values within a factor `condition`.

    After every step U and V are retracted by QR, and the singular values of S are clamped to
    `mean (1 -+ (c - 1)/(c + 1))` (Savostianova et al., 2023). Ranks stay; at the beginning the
    weight keeps its function, so that the bound holds from the first step on.
    """

    condition: float = 4.0

    def __post_init__(self) -> None:
        if self.condition < 1:
            raise PlanError(f"cond-lr: condition is {self.condition}", hint="1 or more")

    def refuses(self, work: Adapted) -> str:
        star = star_of(work.network)
        if star is None or star.cuts > 1:
            return "its bonds part the legs in several ways, and one condition number bounds one"
        return ""

    def begin_(self, work: Adapted) -> None:
        star = star_of(work.network)
        assert star is not None  # accepted
        work.forget_()
        work.set_(in_gauge(star, work.values), {})

    @torch.no_grad()
    def after_(self, works: Sequence[Adapted], step: int) -> None:
        for work in works:
            star = star_of(work.network)
            assert star is not None  # accepted
            values = work.values
            found = {}
            for leaf in star.leaves:
                matrix = matrix_of(values[leaf.core], leaf.axis)
                q, r = torch.linalg.qr(matrix)
                q = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
                found[leaf.core] = shaped_as(q, values[leaf.core], leaf.axis)
            axis = star.leaves[0].root_axis
            root = values[star.root]
            work.check(values)
            u, s, vh = torch.linalg.svd(unfold(root, axis), full_matrices=False)
            reach = (self.condition - 1) / (self.condition + 1)
            low, high = float(s.mean()) * (1 - reach), float(s.mean()) * (1 + reach)
            matrix = (u * s.clamp(low, high)) @ vh
            others = [n for k, n in enumerate(root.shape) if k != axis]
            found[star.root] = matrix.reshape(-1, *others).movedim(0, axis)
            work.set_(found, {})
