"""Conjugate gradients on a list of tensors, for operators that are symmetric and not negative."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Operator = Callable[[list[Tensor]], list[Tensor]]


def solve(
    operator: Operator, right: Sequence[Tensor], steps: int, tolerance: float = 1e-14
) -> list[Tensor]:
    """Return the smallest x with `operator(x) = right`; `right` lies in the operator's range.

    Singular operators (the gauge of a network) are allowed: iterates stay in the range. Stops after
    `steps`, or where the residual is below `tolerance` times the right side, in norm squared
    `tolerance^2`; float32 stops at its own precision.
    """
    found = [torch.zeros_like(part) for part in right]
    residual = [part.clone() for part in right]
    direction = [part.clone() for part in right]
    size = first = _dot(residual, residual)
    limit = max(tolerance, 10 * max(torch.finfo(part.dtype).eps for part in right)) ** 2
    for _ in range(steps):
        if size <= limit * first:
            break
        image = operator(direction)
        curvature = _dot(direction, image)
        if curvature <= 0:
            break
        length = size / curvature
        for x, d in zip(found, direction):
            x.add_(d, alpha=length)
        for r, a in zip(residual, image):
            r.sub_(a, alpha=length)
        before, size = size, _dot(residual, residual)
        for d, r in zip(direction, residual):
            d.mul_(size / before).add_(r)
    return found


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return float(sum((a.conj() * b).real.double().sum() for a, b in zip(left, right)))
