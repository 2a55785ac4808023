"""Steps of a rule on one matrix, with given gradients, in float64."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def gradients(shape: tuple[int, ...], count: int, seed: int = 0) -> list[Tensor]:
    """Return correlated gradients: a slow part that turns, and noise."""
    source = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(shape, generator=source, dtype=torch.float64)  # noqa: E731
    slow, turn = draw(), draw()
    return [slow + 0.1 * k * turn + 0.5 * draw() for k in range(count)]


def parameter(shape: tuple[int, ...], seed: int = 1) -> nn.Parameter:
    """Return a parameter of normal entries."""
    source = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=source, dtype=torch.float64))


def run(optimizer: torch.optim.Optimizer, weight: nn.Parameter, given: Iterable[Tensor]) -> Tensor:
    """Take a step on every gradient and return the weight."""
    for gradient in given:
        weight.grad = gradient.to(weight.dtype, copy=True)
        optimizer.step()
    return weight.detach()


def apart(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest entry of what was expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
