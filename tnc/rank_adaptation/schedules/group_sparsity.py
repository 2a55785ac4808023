"""Group sparsity of ranks by a proximal step after every step of the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tnc.errors import PlanError
from tnc.rank_adaptation.adapted import Adapted
from tnc.rank_adaptation.balance import balance_
from tnc.rank_adaptation.proximal import envelope_factors, lasso_factors
from tnc.rank_adaptation.schedule import Schedule, schedules
from tnc.rank_adaptation.tree import ends, unfold


@schedules.register("group-sparsity")
@dataclass(frozen=True)
class GroupSparsity(Schedule):
    """Shrink whole ranks: a group is one slice of a bond, in both cores together.

    `envelope` is the weighted group sparse envelope function over all groups of the model, each
    weighing its entries, with `keep` of the weight as its budget; `lasso` is the group lasso. The
    proximal step has the size of the learning rate times `strength`. Slices that are zero are
    dropped every `every` steps. A core with several bonds shrinks along each in turn, where the
    groups overlap and the operator is not the exact one.
    """

    penalty: Literal["envelope", "lasso"] = "envelope"
    strength: float = 0.1
    keep: float = 0.5
    every: int = 10

    def __post_init__(self) -> None:
        if self.strength < 0 or not 0 < self.keep <= 1 or self.every < 1:
            raise PlanError("group-sparsity: strength not below 0, 0 < keep <= 1, every at least 1")

    def refuses(self, work: Adapted) -> str:
        return ""

    def begin_(self, work: Adapted) -> None:
        balance_(work)

    @torch.no_grad()
    def after_(self, works: Sequence[Adapted], step: int) -> None:
        bonds = [(work, bond) for work in works for bond in sorted(work.ranks)]
        norms = [_norms(work, bond) for work, bond in bonds]
        weights = [
            torch.full_like(group, _weight(work, bond)) for group, (work, bond) in zip(norms, bonds)
        ]
        sizes = [self.strength * _rate(work) for work in works]
        if len(set(sizes)) > 1:
            raise PlanError(
                "group-sparsity weighs the groups of all layers against each other, and these have "
                "different learning rates",
                hint="put all structured layers into one parameter group",
            )
        joined = [torch.cat([part.cpu() for part in parts]) for parts in (norms, weights)]
        if self.penalty == "lasso":
            factors = lasso_factors(joined[0], joined[1], sizes[0])
        else:
            budget = self.keep * self._whole(works)
            factors = envelope_factors(joined[0], joined[1], sizes[0], budget)
        parts = torch.split(factors, [len(group) for group in norms])
        for (work, bond), part in zip(bonds, parts):
            self._shrink_(work, bond, part)
        if step % self.every == 0:
            for work, bond in bonds:
                kept = torch.nonzero(_norms(work, bond) > 0).flatten()
                work.keep_(bond, kept if len(kept) else torch.tensor([0]))

    def _whole(self, works: Sequence[Adapted]) -> float:
        """Return the weight of all groups at the beginning, so that the budget stays."""
        return float(
            sum(work.start[b] * _weight(work, b, work.start) for work in works for b in work.ranks)
        )

    def _shrink_(self, work: Adapted, bond: str, factors: Tensor) -> None:
        cores = work.cores
        for name in ends(work.network, bond):
            core, axis = cores[name], work.axis(name, bond)
            shape = [-1 if k == axis else 1 for k in range(core.dim())]
            core.mul_(factors.to(core).reshape(shape))


def _norms(work: Adapted, bond: str) -> Tensor:
    """Return the norm of every slice of a bond over its two cores."""
    sides = [unfold(work.values[n], work.axis(n, bond)) for n in ends(work.network, bond)]
    norms: Tensor = torch.linalg.vector_norm(torch.cat(sides, dim=1), dim=1)
    return norms


def _weight(work: Adapted, bond: str, ranks: dict[str, int] | None = None) -> float:
    """Return the entries of one slice of a bond, at the present ranks or others."""
    size = {**work.network.size, **(ranks or {})}
    total = 0
    for name in ends(work.network, bond):
        entries = 1
        for index in work.network.equation.core(name).indices:
            entries *= size[index] if index != bond else 1
        total += entries
    return float(total)


def _rate(work: Adapted) -> float:
    cores = {id(core) for core in work.cores.values()}
    for group in work.optimizer.param_groups:
        if any(id(p) in cores for p in group["params"]):
            return float(group["lr"])
    return 0.0
