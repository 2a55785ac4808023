"""Structured natural gradient descent without inverses (SINGD), with dense factors."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.capturing import SQUARES, Captured
from tnc.optim.kinds import Group, Kind
from tnc.optim.momentum import BUFFER, ball, descend
from tnc.optim.options import NonNegative, Share
from tnc.optim.rule import STEP, rules
from tnc.optim.watching import WatchingRule, eye


@rules.register("structured-ngd")
class StructuredNGD(WatchingRule):
    """`u = B B^T G A A^T`; `A A^T` and `B B^T` follow inverse Kronecker factors, inverting nothing.

    Every `update_every` steps, with `X = E[x x^T]` (p, p) of the layer's inputs and
    `D = E[d d^T]` (d, d) of the gradients of its outputs:

        N_A = (A^T S A - I) / 2,    S = (damp |B|_F^2 / d) I + (tr(B^T D B) / d) X
        M_A <- memory M_A + N_A,    A <- A - lr_factors A M_A

    and B likewise, with the roles exchanged; both from the old A and B. A is at rest where
    `A A^T = S^-1`. `lr_factors` is cut to a fiftieth in the first 100 steps and a fifth up to 500.
    Then a heavy ball: `H <- mu H + u`. Other parameters than weights of linear layers need
    `others='plain'`.

    State of a matrix (d, p): `input_factor` and `input_memory` (p, p), `output_factor` and
    `output_memory` (d, d), `momentum_buffer` (d, p) where there is momentum. (Lin et al.,
    Structured Inverse-Free Natural Gradient, ICML 2024, figure 3 with dense factors.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "input_factor": Kind.OPAQUE,
        "input_memory": Kind.OPAQUE,
        "output_factor": Kind.OPAQUE,
        "output_memory": Kind.OPAQUE,
        BUFFER: Kind.CHANGE,
    }
    gather = SQUARES

    lr_factors: NonNegative = 1e-2
    damping: NonNegative = 1e-3
    memory: Share = 0.5
    momentum: Share = 0.9
    weight_decay = 0.01

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return ball(weight, group)

    def learn(
        self, parameter: Tensor, captured: Captured | None, state: dict[str, Any], group: Group
    ) -> None:
        if "input_factor" not in state:
            for side, size in zip(("output", "input"), parameter.shape):
                state[f"{side}_factor"] = eye(size, parameter)
                state[f"{side}_memory"] = torch.zeros_like(state[f"{side}_factor"])
        if captured is None:
            return
        inputs, outputs = state["input_factor"], state["output_factor"]
        damping, rate = group["damping"], group["lr_factors"] * slowed(int(state[STEP]))
        found = {
            "input": natural_direction(inputs, captured.inputs, outputs, captured.outputs, damping),
            "output": natural_direction(
                outputs, captured.outputs, inputs, captured.inputs, damping
            ),
        }
        for side, direction in found.items():
            memory = state[f"{side}_memory"].mul_(group["memory"]).add_(direction)
            factor = state[f"{side}_factor"]
            factor.sub_(factor @ memory, alpha=rate)

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        change = gradient
        if "input_factor" in state:
            inputs, outputs = state["input_factor"], state["output_factor"]
            change = outputs @ (outputs.mT @ gradient @ inputs) @ inputs.mT
        descend(self, weight, change, state, group)

    def state_bytes(self, shape: tuple[int, ...], group: Group, watched: bool = True) -> int:
        factors = sum(2 * size * size for size in shape) if watched and len(shape) == 2 else 0
        return 4 * (factors + bool(group["momentum"]) * prod(shape))


def natural_direction(
    factor: Tensor, statistic: Tensor, other: Tensor, others: Tensor, damping: float
) -> Tensor:
    """Return `(A^T S A - I) / 2`; `other` and `others` are B and its statistic."""
    size = len(other)
    damped = damping * float(other.square().sum()) / size
    weight = float((other * (others @ other)).sum()) / size
    found = factor.mT @ (weight * (statistic @ factor)).add_(factor, alpha=damped)
    found.diagonal().sub_(1.0)
    return found.mul_(0.5)


def slowed(step: int) -> float:
    """Return what the factors' rate is multiplied by in a step, counted from 1."""
    if step <= 100:
        return 0.02
    return 0.2 if step < 500 else 1.0
