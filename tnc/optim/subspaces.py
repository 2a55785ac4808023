"""Subspaces that move: how to follow a gradient, and what moments become in a new one.

Here a matrix is tall, `G (m, n)` with m at least n, and a subspace is `P (r, n)`: a wide one is
given transposed (`tall`). Rows of P are orthonormal unless a function says otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tall(tensor: Tensor, right: int) -> Tensor:
    """Return a matrix, or its projection, as those of a tall matrix: a view."""
    return tensor if right else tensor.mT


def reconstruction(matrix: Tensor, projector: Tensor) -> tuple[Tensor, Tensor]:
    """Return `|G P^T P - G|^2` and its gradient with respect to P; P need not be orthonormal.

    With `S = G P^T` and `K = P P^T` the gradient is `2 ((K - 2) S^T G + S^T S P)`: products with r
    rows only, and no copy of G. It vanishes where P spans singular vectors of G.

    >>> import torch
    >>> error, slope = reconstruction(torch.eye(2), torch.tensor([[1.0, 0.0]]))
    >>> float(error), slope.tolist()
    (1.0, [[0.0, 0.0]])
    """
    small = matrix @ projector.mT
    gram, covariance = projector @ projector.mT, small.mT @ small
    error = matrix.square().sum() - 2 * small.square().sum() + (gram * covariance).sum()
    gram.diagonal().sub_(2)
    slope = (gram @ (small.mT @ matrix)).addmm_(covariance, projector).mul_(2)
    return error.clamp_min(0), slope


def cosine(mean: Tensor, projector: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine of `M P` and G, and its gradient with respect to P; 0 where M P is 0."""
    size = (mean.mT @ mean @ projector * projector).sum().clamp_min(0).sqrt()
    whole = size * matrix.norm()
    if not float(whole) > 0:
        return whole.new_zeros(()), torch.zeros_like(projector)
    along = mean.mT @ matrix
    found = (along * projector).sum() / whole
    slope = along / whole - found / size.square() * (mean.mT @ mean @ projector)
    return found, slope


def sketched_subspace(matrix: Tensor, projector: Tensor) -> Tensor:
    """Return leading right singular vectors, found within the range of `G P^T`.

    `Q = qr(G P^T)`, then the singular vectors of `Q^T G (r, n)`: a randomised decomposition whose
    sketch is the old subspace.
    """
    basis, _ = torch.linalg.qr(matrix @ projector.mT)
    found: Tensor = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)[2].contiguous()
    return found


def power_step(matrix: Tensor, mean: Tensor, projector: Tensor, share: float) -> Tensor:
    """Return the subspace one power iteration on: `qr((P B^T B)^T)`, `B = s M P + (1 - s) G`.

    `share` is s, and M `(m, r)` a momentum in the old subspace. B is not formed.
    """
    small = torch.lerp(matrix @ projector.mT, mean, share)
    image = ((1 - share) * (small.mT @ matrix)).addmm_(small.mT @ mean, projector, alpha=share)
    found: Tensor = torch.linalg.qr(image.mT)[0].mT.contiguous()
    return found


def rotated_moments(
    mean: Tensor, square: Tensor, old: Tensor, new: Tensor
) -> tuple[Tensor, Tensor]:
    """Return debiased moments of the projected gradient in another subspace.

    With `R = P_new P_old^T`: `m R^T`, and `|(v - m^2) (R * R)^T + (m R^T)^2|`, the second moment of
    entries that are uncorrelated about their mean. Exact where R permutes. (LDAdam, section 3.)
    """
    turn = new @ old.mT
    moved = mean @ turn.mT
    spread = (square - mean.square()) @ turn.square().mT
    return moved, spread.addcmul_(moved, moved).abs_()


def restored_moments(
    mean: Tensor, square: Tensor, old: Tensor, new: Tensor
) -> tuple[Tensor, Tensor]:
    """Return moments brought up and down again: `m R^T` and `(sqrt(v) R^T)^2`. (COAP.)"""
    turn = (new @ old.mT).mT
    return mean @ turn, (square.sqrt() @ turn).square_()
