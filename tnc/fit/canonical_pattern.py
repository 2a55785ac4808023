"""Which networks are CP decompositions, and how factors become their cores."""

from __future__ import annotations

from torch import Tensor

from tnc.fit.canonical import Canonical
from tnc.fit.modes import merge, own_legs, shaped, shares_legs
from tnc.net import Network


def not_canonical(network: Network) -> str:
    """Say why a network is not one bond that meets every core; empty when it is."""
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


def canonical_tensor(folded: Tensor, network: Network) -> tuple[Tensor, int]:
    """Return a folded weight with one mode for each core, and the rank."""
    (bond,) = network.equation.bonds
    return merge(folded, network, network.equation.cores), network.size[bond]


def canonical_cores(found: Canonical, network: Network) -> dict[str, Tensor]:
    """Return the cores of balanced factors."""
    (bond,), cores = network.equation.bonds, network.equation.cores
    return {
        core.name: shaped(factor, network, core, (*own_legs(network, core), bond))
        for core, factor in zip(cores, found.balanced())
    }
