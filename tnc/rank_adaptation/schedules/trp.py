"""Trained rank pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tnc.errors import PlanError
from tnc.fit.named_einsum import Named, einsum
from tnc.net import Network
from tnc.optim.moving import along
from tnc.rank_adaptation.adapted import Adapted
from tnc.rank_adaptation.balance import balance_
from tnc.rank_adaptation.schedule import Schedule, schedules
from tnc.rank_adaptation.tree import ends, rank_within, truncation


@schedules.register("trp")
@dataclass(frozen=True)
class TRP(Schedule):
    """Every `every` steps, truncate each bond to `energy` of its squared spectrum.

    In between, `strength` times the subgradient `U V^T` of the nuclear norm over each cut drives
    small singular values to zero (Xu et al., 2020). Ranks only fall, to `least` at least. A weight
    of zero, such as a fresh delta's, is left alone until it is trained.
    """

    energy: float = 0.98
    every: int = 20
    strength: float = 3e-4
    least: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1 or self.every < 1 or self.strength < 0 or self.least < 1:
            raise PlanError(
                "trp: 0 < energy <= 1, every and least at least 1, strength not below 0"
            )

    def refuses(self, work: Adapted) -> str:
        return ""

    def begin_(self, work: Adapted) -> None:
        balance_(work)

    def before_(self, works: Sequence[Adapted], step: int) -> None:
        if self.strength == 0:
            return
        for work in works:
            cores = work.cores
            for bond in work.ranks:
                pulled = nuclear_subgradient(work.network, work.values, bond)
                for name, part in pulled.items():
                    grad = cores[name].grad
                    if grad is not None:
                        grad.add_(part, alpha=self.strength)

    @torch.no_grad()
    def after_(self, works: Sequence[Adapted], step: int) -> None:
        if step % self.every:
            return
        for work in works:
            work.check(work.values)
            for bond, rank in work.ranks.items():
                found = truncation(work.network, work.values, bond, rank)
                if found.empty:
                    break
                limit = (1 - self.energy) ** 0.5 * float(found.spectrum.norm())
                kept = min(max(self.least, rank_within(found.spectrum, limit)), rank)
                work.insert_(bond, found.into[:, :kept], found.out[:kept])


def nuclear_subgradient(network: Network, cores: dict[str, Tensor], bond: str) -> dict[str, Tensor]:
    """Return, for every core, the gradient of the nuclear norm of the weight over a bond's cut.

    It is empty where the weight is zero, of which zero is a subgradient.
    `U V^T` is a network of the same form: with `X Y` the balanced insertion of `truncation`, it has
    `X S^-1 Y` in the bond. Its inner product with the weight is differentiated core by core.
    """
    found = truncation(network, cores, bond, network.size[bond])
    if found.empty:
        return {}
    middle = (found.into / found.spectrum[: found.into.shape[1]]) @ found.out
    first, _ = ends(network, bond)
    sign = dict(cores)
    axis = network.equation.core(first).indices.index(bond)
    sign[first] = along(cores[first], axis, middle.T)
    with torch.enable_grad():
        own = {name: core.detach().clone().requires_grad_() for name, core in cores.items()}
        parts: list[Named] = []
        for core in network.equation.cores:
            primed = tuple(n + "'" if n in network.equation.bonds else n for n in core.indices)
            parts += [(own[core.name], core.indices), (sign[core.name], primed)]
        inner = einsum(parts, ())
        grads = torch.autograd.grad(inner, list(own.values()))
    return dict(zip(own, grads))
