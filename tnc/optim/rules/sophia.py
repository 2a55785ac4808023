"""Sophia: a momentum over an estimate of the curvature, entry by entry, and clipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.errors import BindError
from tnc.optim.kinds import Group, Kind
from tnc.optim.options import NonNegative
from tnc.optim.rule import STEP, Rule, rules
from tnc.optim.shared_options import Moments


@rules.register("sophia")
class Sophia(Moments, Rule):
    """`m <- b1 m + (1 - b1) G`; `W <- (1 - lr wd) W - lr sign(m) min(|m| / (rho h + eps), 1)`.

    h is an average of the diagonal of the Gauss-Newton matrix. The caller gives its estimates:
    every ten steps or so, the gradient of a loss whose labels are drawn from the model's own
    predictions, then `update_hessian(samples)`. Before the first one h is zero, and steps are signs
    of the momentum. State: `exp_avg` and `hessian`, as large as the parameter. (Liu et al., Sophia,
    ICLR 2024, algorithms 2 and 3; samples are the authors' `bs`, a part of h here.)

    >>> import torch
    >>> model = torch.nn.Linear(4, 3)
    >>> sophia, x = Sophia(model.parameters()), torch.randn(8, 4)
    >>> logits = model(x)
    >>> drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
    >>> torch.nn.functional.cross_entropy(logits, drawn).backward()
    >>> sophia.update_hessian(samples=8); sophia.zero_grad()
    """

    kinds: ClassVar[Mapping[str, Kind]] = {"exp_avg": Kind.COVECTOR, "hessian": Kind.DIAGONAL}
    estimates: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    lr = 1e-4
    betas = (0.965, 0.99)
    rho: NonNegative = 0.04
    eps = 1e-15
    weight_decay = 0.1

    @torch.no_grad()
    def update_hessian(self, samples: float = 1.0) -> None:
        """Take the gradients in place as an estimate: `h <- b2 h + (1 - b2) samples G^2`.

        `samples` is the number of independent labels that the loss is a mean over: of tokens, not
        of sequences. Call it after the backward pass of the sampled loss, then `zero_grad`.
        """
        if not samples > 0:
            raise BindError(
                f"Sophia: samples is {samples!r}", hint="give the number of labels drawn"
            )
        for gradient, state, group in self._gradients():
            second = group["betas"][1]
            state["hessian"].mul_(second).addcmul_(gradient, gradient, value=samples * (1 - second))

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return {
            slot: torch.zeros_like(weight, memory_format=torch.contiguous_format)
            for slot in self.kinds
        }

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        average = state["exp_avg"].lerp_(gradient, 1 - group["betas"][0])
        self.decay_(weight, state, group)
        bound = state["hessian"].mul(group["rho"]).add_(group["eps"])
        weight.add_(torch.div(average, bound, out=bound).clamp_(-1, 1), alpha=-group["lr"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * 2 * prod(shape)

    def _gradients(self) -> Iterator[tuple[Tensor, dict[str, Any], Group]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = self.reached(parameter.grad)
                gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
                state = self.state[parameter]
                if STEP not in state:
                    state.update(self.fresh(gradient, group))
                yield gradient, state, group
