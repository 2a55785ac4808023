"""Least squares by conjugate gradients, for an unknown tensor and a list of right sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]


def smallest_solution(
    forward: Callable[[Tensor], Parts],
    adjoint: Callable[[Parts], Tensor],
    right: Parts,
    steps: int,
    tolerance: float = 1e-14,
) -> Tensor:
    """Return the smallest x that minimises `|forward(x) - right|` (CGLS, Hestenes and Stiefel).

    Always defined: right sides need not be in the range, and `forward` may be singular, as that of
    a network is, by its gauge. Stops after `steps`, or where the gradient is below `tolerance` of
    the first; float32 stops at its own precision.
    """
    residual = {name: part.clone() for name, part in right.items()}
    gradient = adjoint(residual)
    found = torch.zeros_like(gradient)
    direction = gradient.clone()
    size = first = _square(gradient)
    limit = max(tolerance, 10 * torch.finfo(gradient.dtype).eps) ** 2
    for _ in range(steps):
        if size <= limit * first or size == 0:
            break
        image = forward(direction)
        curvature = sum(_square(part) for part in image.values())
        if curvature <= 0:
            break
        length = size / curvature
        found.add_(direction, alpha=length)
        for name, part in residual.items():
            part.sub_(image[name], alpha=length)
        gradient = adjoint(residual)
        before, size = size, _square(gradient)
        direction.mul_(size / before).add_(gradient)
    return found


def _square(tensor: Tensor) -> float:
    return float((tensor.conj() * tensor).real.double().sum())
