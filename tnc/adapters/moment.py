"""One step of training, as the hooks of a delta see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnc.adapters.delta import Delta
from tnc.optim.seeds import mixed


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """The `number`-th step of a delta, counted from 1, among all `deltas` that are trained.

    `seed` is that of the whole training, the same for every delta and in every process.
    """

    number: int
    deltas: Sequence[Delta]
    optimizers: Sequence[torch.optim.Optimizer]
    seed: int
    model: nn.Module

    def holder(self, parameter: Tensor) -> torch.optim.Optimizer | None:
        """Return the optimizer that trains a parameter."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if any(p is parameter for p in group["params"]):
                    return optimizer
        return None

    def rate(self, parameter: Tensor) -> float:
        """Return the learning rate of a parameter; 0 where no optimizer trains it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if any(p is parameter for p in group["params"]):
                    return float(group["lr"])
        return 0.0

    def alike(self, delta: Delta) -> list[Delta]:
        """Return the deltas of the same kind of method, in order."""
        return [each for each in self.deltas if type(each.method) is type(delta.method)]

    def drawn(self, delta: Delta) -> bool:
        """Whether this delta is the one that is drawn in this step among its like."""
        like = self.alike(delta)
        return like[mixed(self.seed, self.number) % len(like)] is delta


def peers(model: nn.Module, delta: Delta) -> list[Delta]:
    """Return every delta that shares the parameters: more than one where weights are tied."""
    mine = {id(core) for core in delta.cores.values()}
    return [
        each
        for each in model.modules()
        if isinstance(each, Delta) and any(id(core) in mine for core in each.cores.values())
    ]
