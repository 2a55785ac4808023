"""Subspaces that gradients are projected to, and Adam within them.

A matrix `G (m, n)` is projected on its shorter side: `G P^T (m, r)` where m is at least n, with
`P (r, n)`; else `P G (r, n)` with `P (r, m)`. Rows of P are orthonormal. The side is a number in
the state (`right`), so that nothing is inferred from shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def is_right(matrix: Tensor) -> int:
    """Return 1 where a matrix is projected on its columns, 0 where on its rows."""
    return int(matrix.shape[0] >= matrix.shape[1])


def projected_shape(shape: tuple[int, int], rank: int) -> tuple[int, int]:
    """Return the shape of a projected matrix; ranks above the shorter side are cut to it."""
    m, n = shape
    return (m, min(rank, n)) if m >= n else (min(rank, m), n)


def down(matrix: Tensor, projector: Tensor, right: int) -> Tensor:
    """Project a matrix."""
    return matrix @ projector.mT if right else projector @ matrix


def up(projected: Tensor, projector: Tensor, right: int) -> Tensor:
    """Bring a projected matrix back: the transpose of `down`."""
    return projected @ projector if right else projector.mT @ projected


def top_subspace(matrix: Tensor, rank: int, right: int) -> Tensor:
    """Return the leading singular vectors on one side, `(rank, side)`.

    From the Gram matrix of that side: cheaper than a decomposition of the matrix. In float64, since
    squares of singular values are read; a matrix of zeros gives unit vectors.
    """
    wide = matrix.double()
    gram = wide.mT @ wide if right else wide @ wide.mT
    _, vectors = torch.linalg.eigh(gram)
    found = vectors[:, -rank:].flip(-1).mT
    return found.to(matrix.dtype).contiguous()


def random_subspace(size: int, rank: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return a random subspace `(rank, size)` with orthonormal rows."""
    drawn = torch.randn(size, min(rank, size), generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(drawn)
    return basis.mT.to(like).contiguous()


def adam_direction(gradient: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """Update `exp_avg` and `exp_avg_sq` by a gradient and return `m_hat / (sqrt(v_hat) + eps)`.

    As `torch.optim.Adam`: both are debiased before eps is added. `state['step']` counts this step.
    """
    first, second = group["betas"]
    steps = float(state["step"])
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    root = square.sqrt().mul_((1 - second**steps) ** -0.5).add_(group["eps"])
    return (mean / root).mul_(1 / (1 - first**steps))


def biased_adam_direction(
    gradient: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]
) -> Tensor:
    """As `adam_direction`, with eps added before the debiasing: Hugging Face's old AdamW.

    GaLore, Online Subspace Descent, COAP, Fira and Subset-Norm use it.
    """
    first, second = group["betas"]
    steps = float(state["step"])
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    factor = (1 - second**steps) ** 0.5 / (1 - first**steps)
    return (mean / square.sqrt().add_(group["eps"])).mul_(factor)
