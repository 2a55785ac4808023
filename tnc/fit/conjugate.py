"""Preconditioned conjugate gradients on tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    target: Tensor,
    precondition: Callable[[Tensor], Tensor] | None,
    steps: int,
    tolerance: float = 1e-12,
) -> Tensor:
    """Return an approximate solution of `H x = target`, H positive semidefinite, from x = 0.

    Every iterate lowers `x.Hx/2 - x.target`, so that stopping early is safe (Hestenes and Stiefel,
    1952).
    """
    identity = torch.clone if precondition is None else precondition
    found = torch.zeros_like(target)
    rest = target
    ahead = identity(rest)
    direction, size = ahead, float((rest * ahead).sum())
    first = size
    for _ in range(steps):
        if size <= tolerance * first or size <= 0:
            break
        turned = product(direction)
        curvature = float((direction * turned).sum())
        if curvature <= 0:
            break
        length = size / curvature
        found = found + length * direction
        rest = rest - length * turned
        ahead = identity(rest)
        before, size = size, float((rest * ahead).sum())
        direction = ahead + (size / before) * direction
    return found
