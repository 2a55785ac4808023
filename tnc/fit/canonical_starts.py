"""CP decompositions of a tensor: exact fibres, or alternating least squares from several starts."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tnc.fit.canonical import Canonical, descend_canonical
from tnc.fit.pair import svd

_RESTARTS, _TRIAL, _SWEEPS = 4, 50, 250


def decompose(tensor: Tensor, rank: int, seed: int) -> Canonical:
    """Return factors of a tensor (Kolda and Bader, 2009, section 3.4).

    Where the rank reaches the product of all modes but one, the fibres of that mode are the exact
    answer. Else leading singular vectors of every unfolding and seeded random starts compete over a
    short run, the best goes on.
    """
    return _fibres(tensor, rank) or _compete(tensor, rank, seed)


def reaches_all(sizes: tuple[int, ...], rank: int) -> bool:
    """Tell whether fibres of the longest mode give any tensor of these sizes exactly."""
    return rank >= prod(sizes) // max(sizes)


def _fibres(tensor: Tensor, rank: int) -> Canonical | None:
    """Return the exact decomposition into fibres of the largest mode, where the rank allows it."""
    sizes = tuple(tensor.shape)
    longest = max(range(len(sizes)), key=lambda mode: sizes[mode])
    others = [size for mode, size in enumerate(sizes) if mode != longest]
    needed = prod(others)
    if rank < needed:
        return None
    ids = torch.arange(needed)
    factors, step = [], needed
    for mode, size in enumerate(sizes):
        if mode == longest:
            factor = tensor.movedim(mode, 0).reshape(size, needed)
        else:
            step //= size
            factor = torch.eye(size, dtype=tensor.dtype)[:, (ids // step) % size]
        factors.append(torch.nn.functional.pad(factor, (0, rank - needed)))
    return Canonical(factors, 0.0, 1, True)


def _compete(tensor: Tensor, rank: int, seed: int) -> Canonical:
    tried = [descend_canonical(tensor, _singular_start(tensor, rank, seed), _TRIAL)]
    for restart in range(_RESTARTS):
        generator = torch.Generator().manual_seed(seed + 1 + restart)
        factors = [
            torch.randn(size, rank, generator=generator, dtype=tensor.dtype)
            for size in tensor.shape
        ]
        tried.append(descend_canonical(tensor, factors, _TRIAL))
    best = min(tried, key=lambda found: found.error)
    if best.converged:
        return best
    longer = descend_canonical(tensor, best.factors, _SWEEPS)
    longer.sweeps += best.sweeps
    return longer


def _singular_start(tensor: Tensor, rank: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    factors = []
    for mode, size in enumerate(tensor.shape):
        u, _, _ = svd(tensor.movedim(mode, 0).reshape(size, -1))
        extra = torch.randn(size, max(0, rank - u.shape[1]), generator=generator, dtype=u.dtype)
        factors.append(torch.cat([u[:, :rank], extra / size**0.5], 1))
    return factors
