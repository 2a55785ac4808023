"""Dynamical low-rank training, rank-adaptive, for matrices and Tucker trees of depth one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tnc.errors import PlanError
from tnc.rank_adaptation.adapted import Adapted, BondMaps
from tnc.rank_adaptation.retraction import Retraction, retract
from tnc.rank_adaptation.schedule import Schedule, schedules
from tnc.rank_adaptation.star import Star, in_gauge, spectra, star_of


@schedules.register("dlrt")
@dataclass(frozen=True)
class DLRT(Schedule):
    """Train on the manifold of low-rank weights; the truncation keeps `tolerance * ||W||`.

    All leaves (K and L steps) and the root (S step) move in parallel by one gradient, the augmented
    root has no new-by-new block, and a truncated higher-order SVD ends the step: the parallel
    rank-adaptive integrator (Ceruti, Kusch and Lubich, 2024) in the Tucker form of Zangrando et
    al., 2024; K, L and S of the matrix case are those of Schotthoefer et al., 2022. A bond may
    double in one step. What a leaf's step does within its own range is left to the root.

    The optimizer sees the matrices `K = U S`, so that no small singular value is divided by. Ranks
    are between `least` and `most` (0: what is of use) and change every `every` steps; `tolerance`
    bounds the error of one truncation relative to the weight, over all bonds together.
    """

    tolerance: float = 0.1
    least: int = 2
    most: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise PlanError(f"dlrt: tolerance is {self.tolerance}", hint="0 <= tolerance < 1")
        if self.least < 1 or self.every < 1 or (self.most and self.most < self.least):
            raise PlanError("dlrt: least and every are at least 1, most is 0 or at least `least`")

    def refuses(self, work: Adapted) -> str:
        if star_of(work.network) is None:
            return "its cores do not all hang on one of them; dlrt takes low rank, tucker, stars"
        return ""

    def begin_(self, work: Adapted) -> None:
        work.forget_()
        work.set_(in_gauge(_star(work), work.values), {})

    @torch.no_grad()
    def before_(self, works: Sequence[Adapted], step: int) -> None:
        for work in works:
            star, cores = _star(work), work.cores
            work.passing.clear()
            if any(core.grad is None for core in cores.values()):
                continue
            work.passing["cores"] = {name: core.detach().clone() for name, core in cores.items()}
            for leaf, norms in zip(star.leaves, spectra(star, cores[star.root].detach())):
                core = cores[leaf.core]
                shape = [-1 if k == leaf.axis else 1 for k in range(core.dim())]
                core.mul_(norms.reshape(shape))
                safe = torch.where(norms > 0, norms, torch.inf)
                assert core.grad is not None  # asked above
                core.grad.div_(safe.reshape(shape))
            work.passing["stepped"] = {name: core.detach().clone() for name, core in cores.items()}

    @torch.no_grad()
    def after_(self, works: Sequence[Adapted], step: int) -> None:
        for work in works:
            if not work.passing:
                continue
            found = self._retracted(work, step % self.every == 0)
            work.passing.clear()
            work.set_(found.cores, _maps(_star(work), found))

    def _retracted(self, work: Adapted, free: bool) -> Retraction:
        star = _star(work)
        held: dict[str, Tensor] = work.passing["cores"]
        begun: dict[str, Tensor] = work.passing["stepped"]
        moved = {name: core - begun[name] for name, core in work.values.items()}
        ranks = work.ranks
        bounds = {
            bond: (min(self.least, rank), self.most or 1 << 30) if free else (rank, rank)
            for bond, rank in ranks.items()
        }
        return retract(star, held, moved, self.tolerance if free else 1.0, bounds, where=work.path)


def _maps(star: Star, found: Retraction) -> BondMaps:
    """Return the maps of the state: leaves by the turn of the root's rows, the root by bases."""
    maps: dict[str, dict[str, Tensor]] = {star.root: {}}
    for leaf, turn, basis in zip(star.leaves, found.turns, found.bases):
        maps[leaf.core] = {leaf.bond: turn}
        maps[star.root][leaf.bond] = basis
    return maps


def _star(work: Adapted) -> Star:
    star = star_of(work.network)
    assert star is not None  # accepted
    return star
