"""diffGrad: Adam, slowed where the gradient does not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind, State
from tnc.optim.projections import adam_direction
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Moments


@rules.register("diffgrad")
class DiffGrad(Moments, Rule):
    """`W <- (1 - lr wd) W - lr sigmoid(|G' - G|) m_hat / (sqrt(v_hat) + eps)`.

    G' is the last gradient, zero at first. Friction is one half where the gradient stays.
    State, each as large as the parameter: `exp_avg`, `exp_avg_sq`, `previous_grad`. (Dubey et al.,
    diffGrad: An Optimization Method for Convolutional Neural Networks, 2020, equations 8 to 10; the
    authors' second version: in the first, friction is one half always.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.COVECTOR,
        "exp_avg_sq": Kind.DIAGONAL,
        "previous_grad": Kind.COVECTOR,
    }
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {
        "exp_avg_sq": lambda state, group: 1 - group["betas"][1] ** float(state["step"])
    }
    elementwise: ClassVar[bool] = True

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return {
            slot: torch.zeros_like(weight, memory_format=torch.contiguous_format)
            for slot in self.kinds
        }

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        previous = state["previous_grad"]
        friction = (previous - gradient).abs_().sigmoid_()
        previous.copy_(gradient)
        self.decay_(weight, state, group)
        weight.addcmul_(adam_direction(gradient, state, group), friction, value=-group["lr"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * 3 * prod(shape)
