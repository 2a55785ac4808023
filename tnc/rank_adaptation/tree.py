"""Trees of cores: who hangs on whom, and the factors that carry a bond's spectrum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tnc.derive.cut import cut
from tnc.fit.modes import bonds_between, shares_legs
from tnc.net import Network
from tnc.optim.moving import along

Cores = Mapping[str, Tensor]


@lru_cache(maxsize=4096)
def refuses_tree(network: Network) -> str:
    """Say why a network is no tree whose every bond is a cut; empty when it is."""
    reason = shares_legs(network)
    joined = bonds_between(network)
    if reason or isinstance(joined, str):
        return reason or str(joined)
    if not joined:
        return "it has no bond"
    for pair, bonds in joined.items():
        if len(bonds) > 1:
            return f"cores {pair[0]} and {pair[1]} share {len(bonds)} bonds"
    loops = [bond for bond in network.equation.bonds if cut(network.equation, bond) is None]
    return f"bond {loops[0]} is part of a loop and parts nothing" if loops else ""


def ends(network: Network, bond: str) -> tuple[str, str]:
    """Return the two cores that a bond joins, in order."""
    first, second = (c.name for c in network.equation.cores if bond in c.indices)
    return first, second


def unfold(tensor: Tensor, axis: int) -> Tensor:
    """Return the matrix `[axis, all others]`."""
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def bond_factor(network: Network, cores: Cores, core: str, bond: str) -> Tensor:
    """Return `R[k, bond]` with `R^T R` the Gram matrix of the side of `bond` that holds `core`."""
    indices = network.equation.core(core).indices
    tensor = cores[core]
    for other in indices:
        if other in network.equation.bonds and other != bond:
            pair = ends(network, other)
            beyond = pair[1] if pair[0] == core else pair[0]
            carried = bond_factor(network, cores, beyond, other)
            tensor = along(tensor, indices.index(other), carried)
    factor: Tensor = torch.linalg.qr(unfold(tensor, indices.index(bond)).T, mode="r")[1]
    return factor


@dataclass(frozen=True)
class Insertion:
    """Matrices `into[bond, new]` and `out[new, bond]` put in a bond, and its spectrum.

    `out @ into` is the identity, `into @ out` a projection of the weight onto its leading singular
    vectors over the cut: the error is the norm of the rest of `spectrum`.
    """

    into: Tensor
    out: Tensor
    spectrum: Tensor

    @property
    def empty(self) -> bool:
        """Whether the weight is zero, as a fresh delta's is: no singular vector leads."""
        return float(self.spectrum.max()) <= torch.finfo(self.spectrum.dtype).tiny


def truncation(network: Network, cores: Cores, bond: str, rank: int) -> Insertion:
    """Return the optimal truncation of a bond, both new sides of equal norms.

    The square-root form of balanced truncation: no inverse but of the singular values that stay.
    """
    left, right = (bond_factor(network, cores, core, bond) for core in ends(network, bond))
    u, spectrum, vh = torch.linalg.svd(left @ right.T, full_matrices=False)
    left, right = u.T @ left, vh @ right
    tiny = torch.finfo(spectrum.dtype).tiny
    kept = max(1, min(rank, int((spectrum > tiny).sum())))
    root = spectrum[:kept].clamp_min(tiny).sqrt()
    return Insertion(right[:kept].T / root, left[:kept] / root[:, None], spectrum)


def rank_within(spectrum: Tensor, limit: float) -> int:
    """Return the smallest rank whose discarded singular values have a norm of at most `limit`."""
    tails = spectrum.double().square().flip(0).cumsum(0).flip(0)
    return int((tails > limit * limit).sum())
