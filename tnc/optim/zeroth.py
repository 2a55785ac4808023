"""Training by differences of losses along random directions: what MeZO and FedKSeed share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.errors import BindError
from tnc.optim.kinds import Form
from tnc.optim.options import NonNegative, Positive, check_options
from tnc.optim.seeds import direction

TAKEN = "taken"
"""The number of steps done, in the first group: it goes with `state_dict`."""


RANGES = {"lr": NonNegative, "eps": Positive, "weight_decay": NonNegative}


class ZerothOrder(torch.optim.Optimizer):
    """An optimizer that needs losses only: no backward pass, no state but its number of steps."""

    form: ClassVar[Form] = Form({})

    def __init__(self, params: Any, options: dict[str, Any]) -> None:
        check_options(type(self).__name__, options, RANGES)
        super().__init__(params, options)
        self.param_groups[0].setdefault(TAKEN, 0)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all groups that require gradients, in order."""
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def count(self) -> int:
        """Count a step and return its number, from 0."""
        found = int(self.param_groups[0][TAKEN])
        self.param_groups[0][TAKEN] = found + 1
        return found

    def slope(self, closure: Callable[[], Any], seed: int) -> tuple[float, float]:
        """Return `(L(w + eps z) - L(w - eps z)) / 2 eps` and the mean of the two losses.

        Parameters are moved in place: to plus, to minus, and back up to rounding.
        """
        if closure is None:
            raise BindError(
                f"{type(self).__name__} needs the loss at two points",
                hint="step(closure); the closure runs the model and returns the loss",
            )
        eps = float(self.param_groups[0]["eps"])
        held = self.parameters
        losses = []
        *there, back = wandering(eps)
        for length in there:
            move_(held, seed, length)
            losses.append(float(closure()))
        move_(held, seed, back)
        plus, minus = losses
        return (plus - minus) / (2 * eps), (plus + minus) / 2


def move_(parameters: Sequence[Tensor], seed: int, length: float) -> None:
    """Move parameters along the direction of a seed: `W <- W + length z`."""
    for place, parameter in enumerate(parameters):
        parameter.add_(direction(parameter, seed, place), alpha=length)


def wandering(eps: float) -> tuple[float, float, float]:
    """Return the lengths of the moves of one look at both sides."""
    return (eps, -2 * eps, eps)
