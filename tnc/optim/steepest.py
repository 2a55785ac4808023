"""Steepest directions of a matrix in several norms, and the norms that are dual to them."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tnc.optim.kinds import Group
from tnc.optim.matrices import Precision, iterated_in, newton_schulz

Norm = Literal["spectral", "infinity", "frobenius"]
NORMS: tuple[Norm, ...] = get_args(Norm)


def steepest(
    matrix: Tensor,
    norm: Norm,
    iterations: int = 5,
    exact: bool = False,
    precision: Precision = "auto",
) -> Tensor:
    """Return the D of norm 1 at most with the largest `<D, X>`.

    'spectral': `U V^T` of `X = U S V^T`, by `newton_schulz` (in what `iterated_in` says) or, if
    `exact`, by a decomposition in float64. 'infinity', the largest absolute entry: `sign(X)`.
    'frobenius': `X / |X|_F`.

    >>> steepest(torch.tensor([[3.0, -4.0]]), "frobenius")
    tensor([[ 0.6000, -0.8000]])
    """
    if norm == "infinity":
        return matrix.sign()
    if norm == "frobenius":
        unit: Tensor = matrix / matrix.norm().clamp_min(torch.finfo(matrix.dtype).tiny)
        return unit
    if exact:
        return polar(matrix)
    return newton_schulz(matrix, iterations, dtype=iterated_in(matrix, precision))


def asked(group: Group) -> tuple[Norm, int, bool, Precision]:
    """Return what a group says of its steps, in the order that `steepest` takes it."""
    return group["norm"], group["iterations"], group["exact"], group["precision"]


def polar(matrix: Tensor) -> Tensor:
    """Return `U V^T` of `U S V^T`, by a decomposition in float64; zeros where S is zero."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = s > s[..., :1] * 1e-12
    found: Tensor = ((u * kept.unsqueeze(-2)) @ v).to(matrix.dtype)
    return found


def dual_norm(
    matrix: Tensor,
    norm: Norm,
    iterations: int = 5,
    exact: bool = False,
    precision: Precision = "auto",
) -> Tensor:
    """Return `max <D, X>` over D of norm 1: the nuclear, the 1- or the Frobenius norm of X."""
    return (matrix * steepest(matrix, norm, iterations, exact, precision)).sum()
