"""One step of training, as the hooks of a delta see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.delta import Delta
from tnc.optim.seeds import mixed


@dataclass(frozen=True, slots=True, eq=False)
class TrainingStep:
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
        return next((optimizer for optimizer, _ in self._holding(parameter)), None)

    def rate(self, parameter: Tensor) -> float:
        """Return the learning rate of a parameter; 0 where no optimizer trains it."""
        return next((float(group["lr"]) for _, group in self._holding(parameter)), 0.0)

    def _holding(self, parameter: Tensor) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any]]]:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if any(p is parameter for p in group["params"]):
                    yield optimizer, group

    def alike(self, delta: Delta) -> list[Delta]:
        """Return the deltas of the same kind of method, in order."""
        return [each for each in self.deltas if type(each.method) is type(delta.method)]

    def drawn(self, delta: Delta) -> bool:
        """Whether this delta is the one that is drawn in this step among its like."""
        like = self.alike(delta)
        return like[mixed(self.seed, self.number) % len(like)] is delta
