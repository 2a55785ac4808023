"""Error-preserving correction: smaller components of a CP decomposition at the same error."""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.fit.canonical import Canonical, canonical_gram, canonical_pull, descend_canonical

GROWN = 10.0
"""Components whose joint norm is beyond this multiple of the weight's are corrected."""

SLACK = 1e-3
_SWEEPS, _AGAIN, _SETTLED = 60, 120, 1e-3
_RIDGES, _EACH = tuple(10 ** (-k / 2) for k in range(2, 17)), 12
_FLOOR, _DEAD = 1e-9, 1e-3


def tamed(tensor: Tensor, found: Canonical) -> Canonical:
    """Return factors with smaller components whose error is at most `1 + SLACK` times as large.

    Ridge regressions with a falling ridge leave the swamp where components grow and cancel, then
    plain least squares and the correction follow. The factors come back as they were where the
    error cannot be kept or the components are no smaller.
    """
    if found.growth() <= GROWN:
        return found
    limit = max(found.error * (1 + SLACK), _FLOOR)
    tried = [found]
    for start in (_relaxed(tensor, found, limit), found):
        onward = start if start is found else descend_canonical(tensor, start.factors, _AGAIN)
        if onward.error <= limit:
            tried.append(onward)
        if onward.error <= limit and onward.growth() > GROWN:
            tried.append(corrected(tensor, onward, min(limit, onward.error * (1 + SLACK))))
    best = min(tried, key=_rank)
    if best is not found:
        best.sweeps += found.sweeps
    return best


def _rank(found: Canonical) -> tuple[float, float]:
    """Order by growth where components have grown, else by error."""
    growth = found.growth()
    return (growth, found.error) if growth > GROWN else (0.0, found.error)


def _relaxed(tensor: Tensor, found: Canonical, limit: float) -> Canonical:
    """Return factors of ridge regressions, the ridge falling until the error is within `limit`."""
    whole = float(tensor.norm()) or 1.0
    level = whole ** (2 - 2 / tensor.ndim)
    generator = torch.Generator().manual_seed(0)
    factors, error, sweeps = found.balanced(), float("inf"), 0
    for ridge in _RIDGES:
        factors = _revived(factors, whole, generator)
        for _ in range(_EACH):
            for mode in range(len(factors)):
                normal = canonical_gram([f for k, f in enumerate(factors) if k != mode])
                normal = normal + ridge * level * torch.eye(len(normal), dtype=normal.dtype)
                pulled = canonical_pull(tensor, factors, mode)
                factors[mode] = torch.linalg.solve(normal, pulled.T).T
            factors = Canonical(factors, 0.0, 0, True).balanced()
        sweeps += _EACH
        error = float((tensor - rebuilt(factors)).norm()) / whole
        if error <= limit:
            break
    return Canonical(factors, error, sweeps, found.converged)


def _revived(factors: list[Tensor], whole: float, generator: torch.Generator) -> list[Tensor]:
    """Return factors whose vanished components are drawn anew at a tenth of the weight's norm."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors]).prod(0)
    dead = norms < _DEAD * whole
    each = (0.1 * whole) ** (1 / len(factors))
    found = []
    for factor in factors:
        drawn = torch.randn(factor.shape, generator=generator, dtype=factor.dtype)
        drawn = each * (drawn / drawn.norm(dim=0)).to(factor.device)
        found.append(torch.where(dead, drawn, factor))
    return found


def corrected(tensor: Tensor, found: Canonical, error: float) -> Canonical:
    """Minimise `sum_r prod_n ||a_r^n||^2` at a relative error of at most `error`.

    One factor after another, columns of the others at unit norm: the least `||A||` on the ball
    `||T - A Z^T|| <= error` is a ridge regression, its ridge found by bisection (Phan et al.,
    Stable Low-rank Tensor Decomposition, 2020, error-preserving correction).
    """
    whole = float(tensor.norm()) or 1.0
    factors, sweeps, settled = found.balanced(), 0, False
    size = _size(factors)
    while sweeps < _SWEEPS and not settled:
        for mode in range(len(factors)):
            factors = _shrunk(tensor, factors, mode, error * whole)
        before, size = size, _size(factors)
        sweeps, settled = sweeps + 1, before - size <= _SETTLED * before
    reached = float((tensor - rebuilt(factors)).norm()) / whole
    return Canonical(factors, reached, found.sweeps + sweeps, found.converged)


def rebuilt(factors: list[Tensor]) -> Tensor:
    """Return the tensor of factors; no more than half of the modes meet the rank at once."""
    half = len(factors) // 2
    sides = []
    for group in (factors[:half], factors[half:]):
        joined = group[0]
        for factor in group[1:]:
            joined = (joined.unsqueeze(1) * factor).flatten(0, 1)
        sides.append(joined)
    return (sides[0] @ sides[1].T).reshape([len(factor) for factor in factors])


def _size(factors: list[Tensor]) -> float:
    return float(torch.stack([f.square().sum(0) for f in factors]).prod(0).sum())


def _shrunk(tensor: Tensor, factors: list[Tensor], mode: int, limit: float) -> list[Tensor]:
    """Return factors whose `mode` is the smallest that keeps the error below `limit`."""
    norms = [factor.norm(dim=0).clamp_min(1e-150) for factor in factors]
    unit = [factor / norm for factor, norm in zip(factors, norms)]
    others = [factor for place, factor in enumerate(unit) if place != mode]
    values, vectors = torch.linalg.eigh(canonical_gram(others))
    values = values.clamp_min(1e-15 * float(values[-1]))
    pulled = canonical_pull(tensor, unit, mode) @ vectors
    energy = pulled.square().sum(0)

    def made(ridge: float) -> list[Tensor]:
        return [*unit[:mode], (pulled / (values + ridge)) @ vectors.T, *unit[mode + 1 :]]

    least = float((tensor - rebuilt(made(0.0))).square().sum())
    room = limit**2 - least
    if room <= 0:
        return factors
    low, high = 1e-14 * float(values[-1]), 1e4 * float(values[-1])
    for _ in range(40):
        ridge = (low * high) ** 0.5
        excess = float((energy * ridge**2 / (values * (values + ridge) ** 2)).sum())
        low, high = (ridge, high) if excess <= room else (low, ridge)
    smaller = made(low)
    kept = float((tensor - rebuilt(smaller)).norm()) <= limit and _size(smaller) <= _size(factors)
    return smaller if kept else factors
