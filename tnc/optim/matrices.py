"""Parameters of any shape as matrices, and matrix functions that rules share."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's iteration (Jordan et al., 2024): steep at zero, within .7 to 1.2 soon."""


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the matrix that a parameter is read as.

    A matrix is itself. Of more axes, the cut between leading and trailing ones that is nearest to
    square: a core `(r, o, s)` of a train is cut where it has most singular values.

    >>> matrix_shape((8, 3, 3, 3)), matrix_shape((4, 16, 4)), matrix_shape((5,))
    ((24, 9), (4, 64), (1, 5))
    """
    cut = matrix_cut(shape)
    return (prod(shape[:cut]), prod(shape[cut:]))


def matrix_cut(shape: tuple[int, ...]) -> int:
    """Return how many leading axes are the rows of the matrix that a parameter is read as.

    >>> matrix_cut((8, 3, 3, 3)), matrix_cut((5,))
    (2, 0)
    """
    if len(shape) < 2:
        return 0
    return max(range(1, len(shape)), key=lambda cut: min(prod(shape[:cut]), prod(shape[cut:])))


def as_matrix(tensor: Tensor) -> Tensor:
    """Return a tensor as its matrix: a view where the memory allows."""
    return tensor.reshape(matrix_shape(tuple(tensor.shape)))


def newton_schulz(
    matrix: Tensor,
    iterations: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return approximately `U V^T` of a matrix `U S V^T`, by odd polynomials.

    `X <- a X + (b X X^T + c (X X^T)^2) X` from `X / |X|_F`. With the coefficients of Muon singular
    values above about .0015 of the norm end within .68 to 1.16. Runs in `dtype`, by default
    bfloat16 on CUDA and the matrix's own type elsewhere.
    """
    a, b, c = coefficients
    dtype = dtype or (torch.bfloat16 if matrix.is_cuda else matrix.dtype)
    found = matrix.to(dtype)
    tall = found.shape[-2] > found.shape[-1]
    found = found.mT if tall else found
    found = found / (found.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    shape = found.shape
    found = found.reshape(shape[:-2].numel(), *shape[-2:])
    for _ in range(iterations):
        gram = found @ found.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, polynomial, found, beta=a)
    found = found.reshape(shape)
    result: Tensor = (found.mT if tall else found).to(matrix.dtype)
    return result
