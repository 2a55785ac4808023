"""Tucker: higher-order SVD, then higher-order orthogonal iteration."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.modes import bonds_between, merge, own_legs, shaped, shares_legs
from tnc.fit.pair import svd
from tnc.net import Core, Network

SWEEPS, TOLERANCE = 50, 1e-9


class HOSVD(DirectFit):
    """`W = G x_1 U_1 ... x_N U_N`, with legs on G that are not compressed.

    Truncated HOSVD (De Lathauwer et al., 2000a) as the start of HOOI (2000b): each factor takes the
    leading left singular vectors of the weight projected on the other factors.
    """

    name = "hosvd"
    takes_complex = True
    order = 3

    def refuses(self, network: Network) -> str:
        found = _star(network)
        return found if isinstance(found, str) else ""

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        star = _star(network)
        assert not isinstance(star, str)  # accepted
        centre, factors = star
        bonds = [_bonds(network, core) for core in factors]
        ranks = [prod(network.size[n] for n in group) for group in bonds]
        tensor = merge(folded, network, [*factors, centre])
        bases, sweeps, settled = orthogonal_iteration(tensor, ranks)
        middle = _project(tensor, bases, skip=-1)
        found = {}
        for core, group, basis in zip(factors, bonds, bases):
            axes = (*own_legs(network, core), *group)
            found[core.name] = shaped(basis, network, core, axes)
        axes = (*(n for group in bonds for n in group), *own_legs(network, centre))
        found[centre.name] = shaped(middle, network, centre, axes)
        return Outcome(found, sweeps, settled)


def orthogonal_iteration(tensor: Tensor, ranks: list[int]) -> tuple[list[Tensor], int, bool]:
    """Return a basis `[mode_k, rank_k]` for the first modes, sweeps taken, whether it settled."""
    bases = [_leading(tensor, mode, rank) for mode, rank in enumerate(ranks)]
    if all(rank >= size for rank, size in zip(ranks, tensor.shape)):
        return bases, 1, True
    energy = float(_project(tensor, bases, skip=-1).abs().square().sum())
    for sweep in range(1, SWEEPS + 1):
        for mode, rank in enumerate(ranks):
            bases[mode] = _leading(_project(tensor, bases, skip=mode), mode, rank)
        before, energy = energy, float(_project(tensor, bases, skip=-1).abs().square().sum())
        if energy - before <= TOLERANCE * energy:
            return bases, sweep, True
    return bases, SWEEPS, False


def _leading(tensor: Tensor, mode: int, rank: int) -> Tensor:
    u, _, _ = svd(tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1))
    return torch.nn.functional.pad(u[:, :rank], (0, max(0, rank - u.shape[1])))


def _project(tensor: Tensor, bases: list[Tensor], skip: int) -> Tensor:
    for mode, basis in enumerate(bases):
        if mode != skip:
            tensor = torch.tensordot(tensor, basis.conj(), dims=([mode], [0])).movedim(-1, mode)
    return tensor


def _star(network: Network) -> tuple[Core, list[Core]] | str:
    """Return the core that all others hang on, and those; or say why there is none."""
    reason = shares_legs(network)
    joined = bonds_between(network)
    if reason or isinstance(joined, str):
        return reason or str(joined)
    cores = network.equation.cores
    for centre in sorted(cores, key=lambda core: -sum(core.name in pair for pair in joined)):
        factors = [core for core in cores if core.name != centre.name]
        hang = all(centre.name in pair for pair in joined)
        held = all(any(f.name in pair for pair in joined) for f in factors)
        if factors and hang and held and all(own_legs(network, f) for f in factors):
            return centre, factors
    return "no core has all others hanging on it"


def _bonds(network: Network, core: Core) -> tuple[str, ...]:
    return tuple(n for n in core.indices if n in network.equation.bonds)


fits.register(HOSVD.name)(HOSVD())
