"""SAM: sharpness-aware minimisation."""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.optim.wrappers.ball import Ball, Changes
from tnc.optim.wrappers.nearby import Closure, Nearby, radius


class SAM(Nearby):
    """Steps with the gradient at `w + rho d`, d the steepest change on the ball's unit sphere.

    With the Euclidean ball `d = g / |g|` over all parameters; `tnc.binding.WeightBall(model)`
    measures cores by how far they move their weights. Two evaluations a step; copies of parameters
    and gradients during it. (Foret et al., Sharpness-Aware Minimization, ICLR 2021, algorithm 1.)

    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> sam = SAM(torch.optim.SGD([w], lr=1.0), rho=0.5)
    >>> def loss():
    ...     sam.zero_grad()
    ...     found = w.square().sum() / 2
    ...     found.backward()
    ...     return found
    >>> float(sam.step(loss).detach()), w.data
    (12.5, tensor([-0.3000, -0.4000]))
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, rho: float = 0.05, ball: Ball | None = None
    ) -> None:
        super().__init__(optimizer, ball)
        self.rho = radius("rho", rho)

    def settle(self, loss: Closure, gradients: Changes) -> dict[Tensor, Tensor]:
        return self.at(loss, self.ball.ascent(gradients), self.rho)
