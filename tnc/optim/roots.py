"""Inverse roots of Gram matrices."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Roots = Literal["eigh", "newton"]
NEWTON_STEPS = 60


def inverse_root(grams: Tensor, order: int, ridge: float, method: Roots = "eigh") -> Tensor:
    """Return `(A + ridge tr(A) / n I)^(-1 / order)` of Gram matrices `[..., n, n]`.

    The ridge is in units of the mean eigenvalue, so that scaling A scales the result. A matrix of
    zeros gives zeros. 'eigh' decomposes in float64; 'newton' is the coupled iteration, matrix
    products alone, in the matrices' own precision.

    >>> inverse_root(torch.tensor([[4.0, 0.0], [0.0, 16.0]]), 2, 0.0)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.2500]])
    """
    return (_newton if method == "newton" else _decomposed)(grams, order, ridge)


def _decomposed(grams: Tensor, order: int, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(grams.double())
    values = values.clamp_min(0)
    top = values[..., -1:]
    values = values + ridge * values.mean(-1, keepdim=True)
    values = torch.maximum(values, top * 1e-30)
    powers = torch.where(top > 0, values, torch.ones_like(values)).pow(-1 / order) * (top > 0)
    found: Tensor = ((vectors * powers.unsqueeze(-2)) @ vectors.mT).to(grams.dtype)
    return found


def _newton(grams: Tensor, order: int, ridge: float) -> Tensor:
    """`M <- T^p M`, `X <- X T` with `T = ((p + 1) I - M) / p`: M goes to I, X to `A^(-1/p)`.

    (Guo and Higham, A Schur-Newton method for the matrix p-th root, 2006; as in Anil et al.,
    Scalable Second Order Optimization, 2020.)
    """
    size = grams.shape[-1]
    eye = torch.eye(size, dtype=grams.dtype, device=grams.device)
    mean = grams.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    there = mean > 0
    damped = torch.where(there, grams + ridge * mean * eye, eye)
    scale = (1 + order) / (2 * damped.norm(dim=(-2, -1), keepdim=True))
    found, left = eye * scale ** (1 / order), damped * scale
    limit = 50 * torch.finfo(grams.dtype).eps
    apart = float("inf")
    for _ in range(NEWTON_STEPS):
        step = ((order + 1) * eye - left) / order
        after, rest = found @ step, torch.linalg.matrix_power(step, order) @ left
        now = float((rest - eye).abs().max())
        if now != now or (apart < 0.1 and now >= apart):  # rounding has taken over
            break
        found, left, apart = after, rest, now
        if apart < limit:
            break
    return torch.where(there, found, torch.zeros_like(found))
