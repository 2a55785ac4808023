"""Block terms: a sum of equal networks, one for each value of an index that all cores carry."""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.derive import core_std, dense
from tnc.fit.als import special_fit
from tnc.fit.embedding import compete, drawn, embedded, shaken, without
from tnc.fit.method import DirectFit, Outcome, fits, saturated
from tnc.fit.named_einsum import contract
from tnc.net import Network, Structure


class BlockTermALS(DirectFit):
    """`W = sum_b network_b`, as in block-term decompositions (De Lathauwer and Nion, 2008).

    Starts: every block fitted by its own special fit to what the blocks before it leave, that
    start shaken, and random cores. The best goes on by alternating least squares.
    """

    name = "block-term-als"
    order = 8

    def refuses(self, network: Network) -> str:
        if len(network.equation.cores) < 2:
            return "it has one core"
        common = _common(network)
        if not common:
            return "no bond is carried by all cores"
        if len(common) == len(network.equation.bonds):
            return "its only bonds are carried by all cores"
        block = without(network, common)
        return "" if special_fit(Structure.of(block)) else f"no special fit takes a block: {block}"

    def complete(self, network: Network) -> bool:
        return saturated(without(network, _common(network)))

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        structure = Structure.of(network)
        weight = folded.reshape(structure.signature.shape)
        generator = torch.Generator().manual_seed(seed)
        std = core_std(structure, float(weight.square().mean().sqrt()) or 1.0)
        peeled = _peeled(folded, network, seed)
        starts = [peeled, shaken(peeled, generator), drawn(network, std, generator)]
        return compete(weight, structure, starts)


def _common(network: Network) -> tuple[str, ...]:
    """Return the bonds that all cores carry."""
    cores = network.equation.cores
    return tuple(
        bond for bond in network.equation.bonds if all(bond in core.indices for core in cores)
    )


def _peeled(folded: Tensor, network: Network, seed: int) -> dict[str, Tensor]:
    """Fit one block after another to what is left of the weight."""
    common = _common(network)
    block = without(network, common)
    structure = Structure.of(block)
    fit = special_fit(structure)
    assert fit is not None  # accepted
    counts = [network.size[name] for name in common]
    total: dict[str, Tensor] = {}
    for place in torch.cartesian_prod(*map(torch.arange, counts)).reshape(-1, len(counts)).tolist():
        cores = fit.solve(folded, block, seed).cores
        part = embedded(network, cores, dict(zip(common, place)))
        total = {name: total[name] + part[name] for name in part} if total else part
        folded = folded - contract(dense(block), cores)
    return total


fits.register(BlockTermALS.name)(BlockTermALS())
