"""What golden tests of rules share: gradients that are given, and parameters that take them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def gradients(*shape: int, count: int = 12, seed: int = 0) -> list[Tensor]:
    """Return random gradients in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def weight(*shape: int, seed: int = 99) -> nn.Parameter:
    """Return a parameter in float64."""
    return nn.Parameter(gradients(*shape, count=1, seed=seed)[0])


def train(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, given: Iterable[Tensor]
) -> list[Tensor]:
    """Take a step with each gradient; return the parameter after every one."""
    seen = []
    for gradient in given:
        parameter.grad = gradient.clone()
        optimizer.step()
        seen.append(parameter.detach().clone())
    return seen


def gap(found: Sequence[Tensor] | Tensor, expected: Sequence[Tensor] | Tensor) -> float:
    """Return the largest difference between tensors, or two lists of them."""
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        return float((found - expected).abs().max())
    return max(gap(a, b) for a, b in zip(found, expected, strict=True))
