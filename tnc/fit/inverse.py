"""Apply the inverse of a normal matrix that is a Kronecker product of small factors."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tnc.fit.named_einsum import Named, einsum
from tnc.fit.normal import Factor, Gram
from tnc.net import Axis

_RIDGE = 1e-13
Memo = dict[Factor, tuple[Tensor, Tensor]]
"""Eigenvalues and vectors of factors that are made of moments alone."""


class Inverse:
    """The regularised inverse of a normal matrix, applied to tensors with the core's dimensions.

    One factor: Cholesky with a relative ridge. Several: their eigenvectors diagonalise the
    Kronecker product at once. Directions below the ridge are damped, not amplified.
    """

    def __init__(self, normal: Gram, memo: Memo) -> None:
        self._core = normal.core
        self._size = normal.size
        self._factors = normal.factors
        self._batch = tuple(
            n for n in self._core if not any(n in factor.rows for factor in normal.factors)
        )
        alone = len(self._factors) == 1
        self._cholesky = _cholesky(normal.matrix(self._factors[0])) if alone else None
        if self._cholesky is None:
            self._eigen = [_eigen(normal, factor, memo) for factor in self._factors]
            self._spread = self._reciprocal()

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return `H^-1 tensor`."""
        order = (*self._batch, *(n for factor in self._factors for n in factor.rows))
        rows = [f"#{k}" for k in range(len(self._factors))]
        shape = [self._size[n] for n in self._batch]
        shape += [prod(self._size[n] for n in factor.rows) for factor in self._factors]
        moved = tensor.permute([self._core.index(n) for n in order])
        full = moved.shape
        axes = (*self._batch, *rows)
        found = self._apply(moved.reshape(shape), axes, rows)
        back = [order.index(n) for n in self._core]
        return found.reshape(full).permute(back)

    def _apply(self, tensor: Tensor, axes: Axis, rows: list[str]) -> Tensor:
        if self._cholesky is not None:
            return self._by_cholesky(tensor, axes)
        for transposed in (True, False):
            for factor, (_, vectors), row in zip(self._factors, self._eigen, rows):
                pair = (row, "##") if transposed else ("##", row)
                to = tuple("##" if n == row else n for n in axes)
                tensor = einsum([(tensor, axes), (vectors, (*factor.batch, *pair))], to)
            if transposed:
                tensor = tensor * self._spread
        return tensor

    def _by_cholesky(self, tensor: Tensor, axes: Axis) -> Tensor:
        assert self._cholesky is not None
        held = self._factors[0].batch
        free = tuple(n for n in axes[:-1] if n not in held)
        order = (*held, axes[-1], *free)
        moved = tensor.permute([axes.index(n) for n in order])
        flat = moved.reshape(*moved.shape[: len(held) + 1], -1)
        solved = torch.cholesky_solve(flat, self._cholesky).reshape(moved.shape)
        return solved.permute([order.index(n) for n in axes])

    def _reciprocal(self) -> Tensor:
        """Return 1 / (product of eigenvalues + ridge) over batch and rows."""
        parts: list[Named] = [
            (values.clamp_min(0), (*factor.batch, f"#{k}"))
            for k, (factor, (values, _)) in enumerate(zip(self._factors, self._eigen))
        ]
        held = {n for _, axes in parts for n in axes}
        loose = [n for n in self._batch if n not in held]
        parts += [(torch.ones(self._size[n], dtype=torch.float64), (n,)) for n in loose]
        rows = tuple(f"#{k}" for k in range(len(self._factors)))
        product = einsum(parts, (*self._batch, *rows))
        floor = product.amax().clamp_min(1e-300) * _RIDGE
        return torch.where(product > floor, 1 / product.clamp_min(floor), torch.zeros_like(product))


def _eigen(normal: Gram, factor: Factor, memo: Memo) -> tuple[Tensor, Tensor]:
    constant = min(factor.operands) >= normal.cores_end
    known = memo.get(factor) if constant else None
    if known is None:
        values, vectors = torch.linalg.eigh(normal.matrix(factor))
        known = (values, vectors)
        if constant:
            memo[factor] = known
    return known


def _cholesky(matrix: Tensor) -> Tensor | None:
    """Factorise with a ridge relative to each block's mean diagonal; None where that fails."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    top = diagonal.abs().amax(-1, keepdim=True)
    ridge = torch.where(top > 0, top * (_RIDGE * matrix.shape[-1] * 10), torch.ones_like(top))
    lower, info = torch.linalg.cholesky_ex(matrix + torch.diag_embed(ridge.expand_as(diagonal)))
    return None if bool((info != 0).any()) else lower
