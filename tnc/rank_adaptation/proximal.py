"""Proximal operators of group penalties: by what factor each group shrinks."""

from __future__ import annotations

import torch
from torch import Tensor


def lasso_factors(norms: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Return the factors of the proximal operator of `strength * sum_i sqrt(weights_i) ||x_i||`.

    Group lasso (Yuan and Lin, 2006): `(1 - strength sqrt(w) / ||x||)_+`.
    """
    safe = torch.where(norms > 0, norms, 1.0)
    return (1 - strength * weights.sqrt() / safe).clamp_min(0) * (norms > 0)


def envelope_factors(norms: Tensor, weights: Tensor, strength: float, budget: float) -> Tensor:
    """Return the factors of the proximal operator of `strength` times the group sparse envelope.

    The weighted group sparse envelope function (Beck and Refael, 2022) is the convex envelope of
    half the squared norm among points whose nonzero groups weigh at most `budget`:
    `min 1/2 sum_i ||x_i||^2 / u_i` over `0 <= u <= 1`, `sum_i weights_i u_i <= budget`. Its
    proximal point has the factors `u / (strength + u)` with
    `u_i = clip(eta ||x_i|| / sqrt(weights_i) - strength, 0, 1)` and `eta` such that the budget is
    met with equality (found by bisection), or `u = 1` on nonzero groups where all fit.
    """
    alive = norms > 0
    if float((weights * alive).sum()) <= budget:
        return alive / (1 + strength)
    scores = norms.double() / weights.double().sqrt()

    def shares(eta: float) -> Tensor:
        return (eta * scores - strength).clamp(0, 1)

    low, high = 0.0, (1 + strength) / float(scores[alive].min())
    for _ in range(100):
        middle = (low + high) / 2
        if float((weights * shares(middle)).sum()) > budget:
            high = middle
        else:
            low = middle
    found = shares(low)
    return (found / (strength + found)).to(norms)
