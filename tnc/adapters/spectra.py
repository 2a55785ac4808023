"""Leading singular vectors of one matrix or of a stack, exact or by a randomised range."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

OVERSAMPLED = 2
"""How many times the rank the randomised range has columns."""

Spectrum = tuple[Tensor, Tensor, Tensor]


def leading(
    matrix: Tensor, rank: int, niter: int | None = None, generator: Generator | None = None
) -> Spectrum:
    """Return `U (.., o, rank)`, `S (.., rank)` and `V^T (.., rank, i)` of matrices `(.., o, i)`.

    Without `niter` it is the exact decomposition. With it the range is found by so many power
    iterations on random columns, orthonormalised in between (Halko, Martinsson, Tropp, 2011,
    algorithm 4.4), and the small projection is decomposed. Of every pair of vectors the largest
    entry on the left is positive.
    """
    if niter is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        basis = _range(matrix, OVERSAMPLED * rank, niter, generator)
        small, values, right = torch.linalg.svd(basis.mH @ matrix, full_matrices=False)
        left = basis @ small
    return _signed(left[..., :rank], values[..., :rank], right[..., :rank, :])


def _range(matrix: Tensor, columns: int, niter: int, generator: Generator | None) -> Tensor:
    """Return an orthonormal basis of about the leading left singular space."""
    columns = min(columns, *matrix.shape[-2:])
    shape = (*matrix.shape[:-2], matrix.shape[-1], columns)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(matrix)
    basis = torch.linalg.qr(matrix @ drawn)[0]
    for _ in range(niter):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mH @ basis)[0])[0]
    found: Tensor = basis
    return found


def _signed(left: Tensor, values: Tensor, right: Tensor) -> Spectrum:
    top = left.gather(-2, left.abs().argmax(-2, keepdim=True))
    sign = torch.where(top == 0, torch.ones_like(top), top.sgn())
    return left * sign.conj(), values, right * sign.mT
