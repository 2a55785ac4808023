"""CP by alternating least squares with several starts."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tnc.fit.canonical import Canonical, descend_canonical
from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.modes import merge, own_legs, shaped, shares_legs
from tnc.fit.pair import svd
from tnc.net import Network

RESTARTS, TRIAL, SWEEPS = 2, 25, 250
DIVERGING = 1e4


class CPALS(DirectFit):
    """`W = sum_r a_r (x) b_r (x) ...` (Kolda and Bader, 2009, section 3.4).

    Where the rank reaches the product of all modes but one, the fibres of that mode are the exact
    answer. Else leading singular vectors of every unfolding and seeded random starts compete over a
    short run, the best goes on. Components that grow and cancel are told in the note.
    """

    name = "cp-als"
    order = 5

    def refuses(self, network: Network) -> str:
        reason = shares_legs(network)
        if reason:
            return reason
        bonds, cores = network.equation.bonds, network.equation.cores
        if len(bonds) != 1:
            return f"it has {len(bonds)} bonds, not one that meets every core"
        bare = [core.name for core in cores if bonds[0] not in core.indices]
        if bare:
            return f"bond {bonds[0]} does not meet core {bare[0]}"
        if not all(own_legs(network, core) for core in cores):
            return "a core carries no leg"
        return "" if len(cores) > 1 else "it has one core"

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        (bond,), cores = network.equation.bonds, network.equation.cores
        tensor = merge(folded, network, cores)
        rank = network.size[bond]
        best = _fibres(tensor, rank) or _compete(tensor, rank, seed)
        factors = best.balanced()
        found = {
            core.name: shaped(factor, network, core, (*own_legs(network, core), bond))
            for core, factor in zip(cores, factors)
        }
        grown = best.growth()
        note = f"diverging components: their norms are {grown:.1e} times the weight's"
        return Outcome(found, best.sweeps, best.converged, note if grown > DIVERGING else "")


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
    tried = [descend_canonical(tensor, _singular_start(tensor, rank, seed), TRIAL)]
    for restart in range(RESTARTS):
        generator = torch.Generator().manual_seed(seed + 1 + restart)
        factors = [
            torch.randn(size, rank, generator=generator, dtype=tensor.dtype)
            for size in tensor.shape
        ]
        tried.append(descend_canonical(tensor, factors, TRIAL))
    best = min(tried, key=lambda found: found.error)
    if best.converged:
        return best
    longer = descend_canonical(tensor, best.factors, SWEEPS)
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


fits.register(CPALS.name)(CPALS())
