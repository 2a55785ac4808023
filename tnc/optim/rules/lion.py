"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.options import Betas
from tnc.optim.rule import Rule, rules


@rules.register("lion")
class Lion(Rule):
    """`W <- (1 - lr wd) W - lr sign(b1 m + (1 - b1) G)`, then `m <- b2 m + (1 - b2) G`.

    State: `exp_avg`, as large as the parameter. Every entry changes by `lr` (Chen et al., Symbolic
    Discovery of Optimization Algorithms, 2023, algorithm 2).

    >>> import torch
    >>> w = torch.nn.Parameter(torch.zeros(2)); w.grad = torch.tensor([3.0, -0.1])
    >>> Lion([w], lr=0.5).step(); w.data
    tensor([-0.5000,  0.5000])
    """

    kinds: ClassVar[Mapping[str, Kind]] = {"exp_avg": Kind.COVECTOR}
    elementwise: ClassVar[bool] = True

    lr = 1e-4
    betas: Betas = (0.9, 0.99)

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return {"exp_avg": torch.zeros_like(weight, memory_format=torch.contiguous_format)}

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        first, second = group["betas"]
        average = state["exp_avg"]
        self.decay_(weight, state, group)
        weight.add_(torch.lerp(gradient, average, first).sign_(), alpha=-group["lr"])
        average.lerp_(gradient, 1 - second)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * prod(shape)
