"""GAM: the largest gradient norm nearby as a penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.errors import BindError
from tnc.optim.wrappers.ball import Ball, Changes
from tnc.optim.wrappers.nearby import Closure, Nearby, radius


class GAM(Nearby):
    """Steps with the gradient of `loss(w) + strength rho max |grad loss(w')|`, w' in a ball of rho.

    The maximum is met at `w' = w + rho d`, d the steepest ascent of the gradient's norm, whose
    gradient is `H u`, u the steepest ascent of the loss. At w', the penalty's gradient is
    `rho H(w') u(w')`. Products with the Hessian H are differences of gradients over the length
    `reach`, exact for quadratic losses. Four evaluations a step. (Zhang et al., Gradient Norm Aware
    Minimization, CVPR 2023, equations 5 to 8.)
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float = 0.05,
        strength: float = 1.0,
        reach: float = 0.01,
        ball: Ball | None = None,
    ) -> None:
        super().__init__(optimizer, ball)
        self.rho = radius("rho", rho)
        self.strength = radius("strength", strength)
        self.reach = radius("reach", reach)
        if not self.reach:
            raise BindError("reach is 0", hint="give the length of differences, 0.01 say")

    def settle(self, loss: Closure, gradients: Changes) -> dict[Tensor, Tensor]:
        bend = self._bend(gradients, self.at(loss, self.ball.ascent(gradients), self.reach))
        out = self.ball.ascent(bend)
        far = self.at(loss, out, self.rho)
        further = self._beside(loss, out, self.ball.ascent(far))
        penalty = self._bend(far, further)
        scale = self.strength * self.rho
        return {
            parameter: gradient + scale * penalty[parameter] if parameter in penalty else gradient
            for parameter, gradient in gradients.items()
        }

    def _beside(self, loss: Closure, out: Changes, along: Changes) -> dict[Tensor, Tensor]:
        """Return the gradients at `w + rho out + reach along`."""
        both = {p: self.rho * out[p] + self.reach * along[p] for p in along if p in out}
        return self.at(loss, both, 1.0)

    def _bend(self, here: Changes, there: Changes) -> dict[Tensor, Tensor]:
        """Return the Hessian's product from gradients at two points, `reach` apart."""
        return {p: (there[p] - here[p]) / self.reach for p in there if p in here}
