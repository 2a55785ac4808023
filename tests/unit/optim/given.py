"""Run an optimizer on given gradients, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def run(
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    start: Tensor,
    gradients: Iterable[Tensor],
) -> tuple[Tensor, torch.optim.Optimizer]:
    """Return the parameter after one step a gradient, and the optimizer."""
    weight = torch.nn.Parameter(start.clone())
    optimizer = make([weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach(), optimizer


def state(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """Return the state of an optimizer's only parameter."""
    return optimizer.state[optimizer.param_groups[0]["params"][0]]


def drawn(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    """Return correlated gradients in float64."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return list(made + 0.5 * made.mean(0))


def conditioned(rows: int, columns: int, lowest: float, seed: int = 0) -> Tensor:
    """Return a matrix whose singular values fall from 1 to `lowest`, evenly."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(made, full_matrices=False)
    return (u * torch.linspace(1, lowest, u.shape[1], dtype=torch.float64)) @ v


def near(a: Tensor, b: Tensor, limit: float) -> None:
    """Assert that two tensors differ by a share of the second one's norm at most."""
    assert a.shape == b.shape
    apart = float((a - b).norm()) / max(float(b.norm()), 1e-300)
    assert apart <= limit, apart


def polar_of(matrix: Tensor) -> Tensor:
    """Return `U V^T`, by the textbook."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def spread(values: Sequence[float]) -> float:
    """Return the largest over the smallest."""
    return max(values) / min(values)
