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


def refuses_projection(weight: Tensor) -> str:
    """Say why a parameter cannot be projected; empty when it can."""
    return "" if weight.dim() >= 2 else "it is no matrix, which could be projected"


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


def due(state: Mapping[str, Any], group: Mapping[str, Any]) -> bool:
    """Whether the subspace is taken anew: at a parameter's first step, then every `update_every`.

    The clock is the parameter's own count of steps, so accumulated gradients do not turn it.
    """
    return (int(state["step"]) - 1) % int(group["update_every"]) == 0


def draws(state: Mapping[str, Any]) -> torch.Generator:
    """Return random numbers that depend on the parameter's seed and step alone."""
    number = int(state["seed"]) * 1_000_003 + int(state["step"])
    return torch.Generator().manual_seed(number % 2**32)


def projected_start(matrix: Tensor, rank: int) -> dict[str, Any]:
    """Return Adam's moments within a subspace, the subspace and the side it is on, at the start."""
    shape = projected_shape((matrix.shape[0], matrix.shape[1]), rank)
    right = is_right(matrix)
    return {
        "exp_avg": matrix.new_zeros(shape),
        "exp_avg_sq": matrix.new_zeros(shape),
        "projector": matrix.new_zeros(shape[right], matrix.shape[right]),
        "right": right,
    }


def projected_floats(shape: tuple[int, int], rank: int) -> int:
    """Return how many numbers `projected_start` holds: 2 max(m, n) r + min(m, n) r."""
    small = projected_shape(shape, rank)
    return 2 * small[0] * small[1] + min(rank, *shape) * min(shape)


def spectrum(matrix: Tensor, right: int) -> tuple[Tensor, Tensor]:
    """Return all singular values, smallest first, and vectors of one side as columns; in float64.

    From the Gram matrix of that side: cheaper than a decomposition of the matrix.
    """
    wide = matrix.double()
    gram = wide.mT @ wide if right else wide @ wide.mT
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp_min(0).sqrt(), vectors


def top_subspace(matrix: Tensor, rank: int, right: int) -> Tensor:
    """Return the leading singular vectors on one side, `(rank, side)`.

    On the longer side `rank` is the shorter side at most, whose vectors are carried over. A matrix
    of zeros gives unit vectors.
    """
    if matrix.shape[right] > matrix.shape[1 - right] >= rank:
        _, vectors = spectrum(matrix, 1 - right)
        leading = vectors[:, -rank:].flip(-1)
        wide = matrix.double()
        basis, _ = torch.linalg.qr((wide.mT if right else wide) @ leading)
        found: Tensor = basis.mT.to(matrix.dtype).contiguous()
        return found
    _, vectors = spectrum(matrix, right)
    return vectors[:, -rank:].flip(-1).mT.to(matrix.dtype).contiguous()


def facing(projector: Tensor, before: Tensor) -> Tensor:
    """Return a projector whose rows point the way of those that they replace.

    The sign of a singular vector means nothing, and depends on the library that found it; moments
    that stay in the coordinates of the old rows would change sign with it.
    """
    turned = (projector * before).sum(1, keepdim=True) < 0
    return torch.where(turned, -projector, projector)


def sampled_subspace(matrix: Tensor, rank: int, right: int, generator: torch.Generator) -> Tensor:
    """Return `rank` singular vectors of one side, drawn by their singular values, largest first.

    Without replacement: the largest of `log sigma` plus Gumbel noise are the same draw.
    """
    values, vectors = spectrum(matrix, right)
    picked = sampled(values, rank, generator).sort(descending=True).values
    return vectors[:, picked].mT.to(matrix.dtype).contiguous()


def sampled(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return places drawn without replacement by weights of zero or more; zeros come last."""
    uniform = torch.rand(weights.shape, generator=generator, dtype=torch.float64)
    gumbel = -(-uniform.clamp_min(1e-300).log()).log()
    return (weights.double().log() + gumbel.to(weights.device)).topk(count).indices


def random_subspace(size: int, rank: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return a random subspace `(rank, size)` with orthonormal rows."""
    drawn = torch.randn(size, min(rank, size), generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(drawn)
    found: Tensor = basis.mT.to(like).contiguous()
    return found


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
    found: Tensor = (mean / root).mul_(1 / (1 - first**steps))
    return found


def biased_adam_direction(
    gradient: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]
) -> Tensor:
    """As `adam_direction`, with eps added before the debiasing: Hugging Face's old AdamW.

    GaLore, Online Subspace Descent, COAP, Fira and Subset-Norm use it.
    """
    return adam_ratio(gradient, state, group).mul_(debiasing(state, group))


def adam_ratio(gradient: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """Update `exp_avg` and `exp_avg_sq` by a gradient and return `m / (sqrt(v) + eps)`."""
    first, second = group["betas"]
    mean, square = state["exp_avg"], state["exp_avg_sq"]
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    found: Tensor = mean / square.sqrt().add_(group["eps"])
    return found


def debiasing(state: Mapping[str, Any], group: Mapping[str, Any]) -> float:
    """Return what `adam_ratio` is multiplied by: `sqrt(1 - b2^t) / (1 - b1^t)`."""
    first, second = group["betas"]
    steps = float(state["step"])
    return float((1 - second**steps) ** 0.5 / (1 - first**steps))
