"""The two factors of a low-rank delta as matrices, with a stack of experts as a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.net import Signature


def flat(signature: Signature, tensor: Tensor) -> Tensor:
    """Read a weight, or a factor `[o r]` or `[r i]` of it, as a matrix, of experts as a batch.

    >>> flat(Signature((8,), (4, 3, 3)), torch.zeros(2, 4, 3, 3)).shape
    torch.Size([2, 36])
    """
    return tensor.flatten(2 if len(signature.outputs) > 1 else 1)


def pair(delta: Delta) -> tuple[Tensor, Tensor]:
    """Return B `[o r]` and A `[r i]` of a low-rank delta."""
    found = (flat(delta.site.signature, delta.cores[name]) for name in ("B", "A"))
    b, a = found
    return b, a


def pair_gradients(delta: Delta) -> tuple[Tensor, Tensor] | None:
    """Return the gradients of B and A; None where one of them has none."""
    b, a = (delta.cores[name].grad for name in ("B", "A"))
    if b is None or a is None:
        return None
    return flat(delta.site.signature, b), flat(delta.site.signature, a)


def inverse(gram: Tensor, tolerance: float) -> Tensor:
    """Return the pseudo-inverse of symmetric positive semidefinite matrices.

    Eigenvalues up to `tolerance` times the largest count as zero.
    """
    values, vectors = torch.linalg.eigh(gram)
    kept = values > tolerance * values[..., -1:].clamp_min(0)
    inverted = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    found: Tensor = (vectors * inverted.unsqueeze(-2)) @ vectors.mT
    return found


def cutoff(factor: Tensor) -> float:
    """Return the share of a Gram matrix's largest eigenvalue that is rounding, in float64."""
    own, best = torch.finfo(factor.dtype).eps, torch.finfo(torch.float64).eps
    return 8 * min(factor.shape[-2:]) * max(own**2, best)


def bytes_of(dtype: str) -> int:
    """Return the bytes of one number of a delta beside a weight of a dtype: 4, of float64 8."""
    return 8 if dtype == "float64" else 4
