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


def steepest(
    push: Callable[[Parts], list[Tensor]],
    pull: Callable[[list[Tensor]], Parts],
    gradient: Parts,
    steps: int,
    tolerance: float = 1e-14,
) -> dict[str, Tensor]:
    """Return the smallest d with `J^T J d = g`: `push` is J and `pull` its transpose.

    By conjugate gradients, for g in the range of `J^T`, as gradients of cores are; J may be
    singular. Stops after `steps`, or where the residual is below `tolerance` of g, float32 at its
    own precision.
    """
    residual = {name: part.clone() for name, part in gradient.items()}
    found = {name: torch.zeros_like(part) for name, part in gradient.items()}
    direction = {name: part.clone() for name, part in gradient.items()}
    size = first = sum(_square(part) for part in residual.values())
    precision = max(torch.finfo(part.dtype).eps for part in residual.values())
    limit = max(tolerance, 10 * precision) ** 2
    for _ in range(steps):
        if size <= limit * first or size == 0:
            break
        image = push(direction)
        curvature = sum(_square(part) for part in image)
        if curvature <= 0:
            break
        length = size / curvature
        bent = pull(image)
        for name, part in residual.items():
            found[name].add_(direction[name], alpha=length)
            part.sub_(bent[name], alpha=length)
        before, size = size, sum(_square(part) for part in residual.values())
        for name, part in direction.items():
            part.mul_(size / before).add_(residual[name])
    return found
