"""The heavy ball on preconditioned gradients, and the step along it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tnc.optim.kinds import Group
from tnc.optim.rule import Rule

BUFFER = "momentum_buffer"


def ball(weight: Tensor, group: Group) -> dict[str, Any]:
    """Return the slot of the heavy ball, where the group asks for momentum."""
    if not group["momentum"]:
        return {}
    return {BUFFER: torch.zeros_like(weight, memory_format=torch.contiguous_format)}


def descend(
    rule: Rule, weight: Tensor, change: Tensor, state: dict[str, Any], group: Group
) -> None:
    """`B <- mu B + u`, `W <- (1 - lr wd) W - lr B`, in place; without a ball B is the change u."""
    if BUFFER in state:
        change = state[BUFFER].mul_(group["momentum"]).add_(change)
    rule.decay_(weight, state, group)
    weight.add_(change, alpha=-group["lr"])
