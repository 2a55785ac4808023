"""Alternating least squares on the factor matrices of a CP decomposition."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tnc.fit.named_einsum import Named, einsum

TOLERANCE = 1e-6
DIVERGING = 1e4
_RIDGE = 1e-12
_EXTRAPOLATE_EVERY = 4


@dataclass
class Canonical:
    """Factors `[mode_k, r]`, the relative error they leave, sweeps taken."""

    factors: list[Tensor]
    error: float
    sweeps: int
    converged: bool

    def balanced(self) -> list[Tensor]:
        """Return factors whose columns have the same norm in every mode."""
        norms = torch.stack([factor.norm(dim=0) for factor in self.factors])
        each = norms.prod(0) ** (1 / len(self.factors))
        safe = torch.where(norms > 0, norms, torch.ones_like(norms))
        return [factor * (each / norm) for factor, norm in zip(self.factors, safe)]

    def growth(self) -> float:
        """Return `sqrt(sum_r ||term_r||^2) / ||sum||`: large where terms cancel each other."""
        whole = float(canonical_gram(self.factors).sum().clamp_min(0).sqrt())
        terms = float(torch.stack([f.square().sum(0) for f in self.factors]).prod(0).sum().sqrt())
        return terms / whole if whole > 0 else 1.0

    def sensitivity(self) -> float:
        """Return the expected change of the tensor for unit noise on every factor entry, squared.

        `sum_n mode_n sum_r prod_(m != n) ||column r of factor m||^2`, relative to the squared norm
        of the tensor, of balanced factors (Phan et al., Stable CPD, 2020).
        """
        factors = self.balanced()
        squares = torch.stack([factor.square().sum(0) for factor in factors])
        whole = float(canonical_gram(factors).sum().clamp_min(1e-300))
        total = 0.0
        for mode, factor in enumerate(factors):
            others = torch.cat([squares[:mode], squares[mode + 1 :]])
            total += len(factor) * float(others.prod(0).sum())
        return total / whole

    def remark(self) -> str:
        """Tell the sensitivity, and components that cancel each other."""
        grown = self.growth()
        told = f"sensitivity {self.sensitivity():.3g}"
        if grown > DIVERGING:
            told += f"; diverging components: their norms are {grown:.1e} times the weight's"
        return told


def descend_canonical(tensor: Tensor, factors: list[Tensor], sweeps: int) -> Canonical:
    """Run up to `sweeps`; stop when the error changes by less than `TOLERANCE` of it.

    Every few sweeps the last change is extrapolated, and kept where that lowers the error: plain
    sweeps crawl through swamps (Rajih et al., 2008).
    """
    whole = float(tensor.norm()) or 1.0
    factors = list(factors)
    error, former = float("inf"), factors
    for sweep in range(1, sweeps + 1):
        if sweep % _EXTRAPOLATE_EVERY == 0:
            factors = _extrapolated(tensor, former, factors, sweep, error, whole)
        former, before = factors, error
        factors, error = _sweep(tensor, factors, whole)
        settled = sweep > 1 and before - error <= TOLERANCE * before
        if settled or error <= 1e-8:
            return Canonical(factors, error, sweep, True)
    return Canonical(factors, error, sweeps, False)


def _sweep(tensor: Tensor, factors: list[Tensor], whole: float) -> tuple[list[Tensor], float]:
    factors = list(factors)
    last = len(factors) - 1
    for mode in range(len(factors)):
        pulled = canonical_pull(tensor, factors, mode)
        normal = canonical_gram([f for k, f in enumerate(factors) if k != mode])
        factors[mode] = _solve(normal, pulled)
        if mode == last:
            error = _error(pulled, factors, mode, whole)
        else:
            norms = factors[mode].norm(dim=0)
            factors[mode] = factors[mode] / torch.where(norms > 0, norms, torch.ones_like(norms))
    return factors, error


def _extrapolated(
    tensor: Tensor,
    former: list[Tensor],
    factors: list[Tensor],
    sweep: int,
    error: float,
    whole: float,
) -> list[Tensor]:
    ahead = [f + sweep ** (1 / len(factors)) * (f - g) for f, g in zip(factors, former)]
    last = len(factors) - 1
    reached = _error(canonical_pull(tensor, ahead, last), ahead, last, whole)
    return ahead if reached < error else factors


def canonical_pull(tensor: Tensor, factors: list[Tensor], mode: int) -> Tensor:
    """Return the weight contracted with all factors but one: `[mode, r]`."""
    names = tuple(f"m{k}" for k in range(tensor.ndim))
    parts: list[Named] = [(tensor, names)]
    parts += [(f, (names[k], "r")) for k, f in enumerate(factors) if k != mode]
    return einsum(parts, (names[mode], "r"))


def canonical_gram(factors: list[Tensor]) -> Tensor:
    return torch.stack([factor.T @ factor for factor in factors]).prod(0)


def _solve(normal: Tensor, pulled: Tensor) -> Tensor:
    ridge = _RIDGE * normal.diagonal().amax().clamp_min(1e-300)
    identity = torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
    lower, info = torch.linalg.cholesky_ex(normal + ridge * identity)
    if int(info) == 0:
        return torch.cholesky_solve(pulled.T, lower).T
    inverse: Tensor = torch.linalg.pinv(normal, hermitian=True, rtol=_RIDGE)
    return pulled @ inverse


def _error(pulled: Tensor, factors: list[Tensor], mode: int, whole: float) -> float:
    square = (
        whole**2 - 2 * float((pulled * factors[mode]).sum()) + float(canonical_gram(factors).sum())
    )
    return math.sqrt(max(square, 0.0)) / whole
