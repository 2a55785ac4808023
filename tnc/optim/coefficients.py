"""Coefficients of Newton-Schulz iterations that fit the singular values of a shape."""

from __future__ import annotations

from functools import lru_cache
from math import pi

import torch
from torch import Tensor

from tnc.optim.matrices import QUINTIC

_POINTS = 64
_ELSEWHERE = 0.5  # weight of what is no random matrix: coefficients must not diverge on it


@lru_cache(maxsize=1024)
def coefficients_for(rows: int, columns: int, iterations: int = 5) -> tuple[float, float, float]:
    """Return (a, b, c) with which `a x + b x^3 + c x^5`, iterated, is nearest to 1 on a shape.

    In least squares over the singular values that a random matrix of the shape has after division
    by its Frobenius norm, and, with a quarter of their weight, over all sizes from 1 down to the
    smallest of them: gradients are no random matrices. A square needs steep polynomials, which
    oscillate; a rectangle does not. (The dimension-robust iteration of He et al., ROOT, 2025; the
    numbers are our own fit.)
    """
    from scipy.optimize import least_squares

    likely = expected_values(rows, columns)
    lowest = min(float(likely[0]), 1e-2)
    every = torch.logspace(float(torch.tensor(lowest).log10()), 0, _POINTS, dtype=torch.float64)

    def misses(found: object) -> object:
        a, b, c = torch.as_tensor(found, dtype=torch.float64)
        values = torch.cat([likely, every])
        for _ in range(iterations):
            squares = values.square()
            values = values * (a + squares * (b + c * squares))
        misses = (values - 1).nan_to_num(1e3).clamp(-1e3, 1e3)
        misses[_POINTS:] *= _ELSEWHERE
        return misses.numpy()

    a, b, c = least_squares(misses, QUINTIC, method="lm").x
    return float(a), float(b), float(c)


def expected_values(rows: int, columns: int) -> Tensor:
    """Return quantiles of the singular values of a random matrix over its Frobenius norm.

    Ascending; by the law of Marchenko and Pastur.
    """
    short, long = sorted((rows, columns))
    ratio = short / long
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    angles = (torch.arange(4000, dtype=torch.float64) + 0.5) * (pi / 4000)
    squares = (low + high) / 2 - (high - low) / 2 * angles.cos()
    density = angles.sin().square() / squares
    below = density.cumsum(0) / density.sum()
    wanted = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) / _POINTS
    found: Tensor = (squares[torch.searchsorted(below, wanted)] / short).sqrt().clamp_max(1)
    return found
