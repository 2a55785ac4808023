"""Maestro: nested dropout of ranks with a hierarchical group penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import PlanError
from tnc.rank_adaptation.adapted import Adapted
from tnc.rank_adaptation.balance import balance_
from tnc.rank_adaptation.schedule import Schedule, schedules
from tnc.rank_adaptation.tree import ends, unfold


@schedules.register("maestro")
@dataclass(frozen=True)
class Maestro(Schedule):
    """Order ranks by importance while training, and cut the tail every `every` steps.

    In each step one bond of one layer runs at a random width (in training mode only), and
    `strength` times `sum_i ||first[i:]|| + ||second[i:]||` is added to the loss. A tail whose
    product of norms is below `threshold` of the whole bond's is dropped (Horvath et al., 2024).
    Layers stay factorised also where the dense weight would be smaller.
    """

    strength: float = 1e-4
    threshold: float = 1e-3
    every: int = 100
    dropout: bool = True

    def __post_init__(self) -> None:
        if self.strength < 0 or not 0 <= self.threshold < 1 or self.every < 1:
            raise PlanError("maestro: strength not below 0, 0 <= threshold < 1, every at least 1")

    def refuses(self, work: Adapted) -> str:
        return work.unhooked if self.dropout else ""

    def begin_(self, work: Adapted) -> None:
        balance_(work)

        def narrow(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            chosen = work.memory.get("width")
            if chosen is None or not layer.training:
                return output
            return work.layer.run(_masked(work, *chosen), *inputs)

        work.passing["hook"] = work.layer.register_forward_hook(narrow)

    @torch.no_grad()
    def before_(self, works: Sequence[Adapted], step: int) -> None:
        for work in works:
            cores = work.cores
            for bond in work.ranks:
                for name in ends(work.network, bond):
                    core, axis = cores[name], work.axis(name, bond)
                    if core.grad is not None:
                        weights = (1 / _tails(core, axis)).cumsum(0)
                        shape = [-1 if k == axis else 1 for k in range(core.dim())]
                        core.grad.addcmul_(core, weights.reshape(shape), value=self.strength)

    @torch.no_grad()
    def after_(self, works: Sequence[Adapted], step: int) -> None:
        if step % self.every == 0:
            for work in works:
                self._shrink_(work)
        if self.dropout:
            self._sample_(works)

    def _shrink_(self, work: Adapted) -> None:
        for bond in work.ranks:
            sides = ends(work.network, bond)
            tails = [_tails(work.values[name], work.axis(name, bond)) for name in sides]
            product = tails[0] * tails[1]
            kept = max(1, int((product >= self.threshold * product[0]).sum()))
            work.keep_(bond, torch.arange(kept))

    def _sample_(self, works: Sequence[Adapted]) -> None:
        for work in works:
            work.memory.pop("width", None)
        work = works[_draw(works[0], len(works))]
        bond = sorted(work.ranks)[_draw(work, len(work.ranks))]
        work.memory["width"] = [bond, 1 + _draw(work, work.ranks[bond])]

    def close_(self, works: Sequence[Adapted]) -> None:
        for work in works:
            work.memory.pop("width", None)
            if "hook" in work.passing:
                work.passing.pop("hook").remove()


def _masked(work: Adapted, bond: str, width: int) -> dict[str, Tensor]:
    """Return the cores with the slices of a bond beyond a width set to zero."""
    name, _ = ends(work.network, bond)
    cores: dict[str, Tensor] = dict(work.cores)
    core, axis = cores[name], work.axis(name, bond)
    mask = (torch.arange(core.shape[axis], device=core.device) < width).to(core)
    cores[name] = core * mask.reshape([-1 if k == axis else 1 for k in range(core.dim())])
    return cores


def _tails(core: Tensor, axis: int) -> Tensor:
    """Return the norms of all slices from each one on: `||core[i:]||`."""
    squares = unfold(core, axis).square().sum(1)
    tails = squares.flip(0).cumsum(0).flip(0).sqrt()
    return tails.clamp_min(torch.finfo(tails.dtype).tiny ** 0.5)


def _draw(work: Adapted, count: int) -> int:
    return int(torch.randint(count, (), generator=work.generator))
