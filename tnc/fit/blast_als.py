"""BLAST: blocks that share left factors along rows, right factors along columns."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tnc.derive import core_std
from tnc.fit.embedding import compete, drawn, shaken
from tnc.fit.folding import legs_of
from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.modes import shaped
from tnc.fit.named_einsum import einsum
from tnc.fit.pair import split, svd
from tnc.net import Axis, Core, Network, Structure


class BlastALS(DirectFit):
    """`W[p o, q i] = sum_r U[p, o, r] S[p, q, r] V[q, i, r]` (Lee et al., BLAST, 2024).

    Starts: the truncated SVD with S = 1, exact at full rank; the leading singular vectors of every
    row and every column of blocks; the first shaken; random cores. The paper descends by 300
    preconditioned gradient steps; alternating least squares solves each core instead.
    """

    name = "blast-als"
    order = 8

    def refuses(self, network: Network) -> str:
        found = _parts(network)
        return found if isinstance(found, str) else ""

    def complete(self, network: Network) -> bool:
        parts = _parts(network)
        assert not isinstance(parts, str)  # accepted
        left, _, right = parts
        (bond,) = network.equation.bonds
        sides = [prod(network.shape(core)) // network.size[bond] for core in (left, right)]
        return network.size[bond] >= min(sides)

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        parts = _parts(network)
        assert not isinstance(parts, str)  # accepted
        structure = Structure.of(network)
        weight = folded.reshape(structure.signature.shape)
        generator = torch.Generator().manual_seed(seed)
        std = core_std(structure, float(weight.square().mean().sqrt()) or 1.0)
        whole = _low_rank(folded, network, parts)
        starts = [whole, _panels(folded, network, parts, generator)]
        starts += [shaken(whole, generator), drawn(network, std, generator)]
        return compete(weight, structure, starts)


def _parts(network: Network) -> tuple[Core, Core, Core] | str:
    """Return the left factor, the scales and the right factor, or say why there are none."""
    equation = network.equation
    if len(equation.cores) != 3:
        return f"it has {len(equation.cores)} cores, not three"
    if len(equation.bonds) != 1:
        return f"it has {len(equation.bonds)} bonds, not one that meets all cores"
    if equation.shared:
        return f"leg {equation.shared[0]} is input and output at once"
    (bond,) = equation.bonds
    if not all(bond in core.indices for core in equation.cores):
        return f"bond {bond} does not meet all cores"
    for middle in equation.cores:
        left, right = (core for core in equation.cores if core.name != middle.name)
        rows, columns = _shared(left, middle, bond), _shared(right, middle, bond)
        covered = {*rows, *columns, bond} == set(middle.indices)
        apart = set(left.indices) & set(right.indices) == {bond}
        own = [set(core.indices) - set(middle.indices) for core in (left, right)]
        if rows and columns and covered and apart and all(own):
            return left, middle, right
    return "no core shares all its legs with two others"


def _shared(core: Core, middle: Core, bond: str) -> Axis:
    return tuple(n for n in core.indices if n in middle.indices and n != bond)


def _low_rank(
    folded: Tensor, network: Network, parts: tuple[Core, Core, Core]
) -> dict[str, Tensor]:
    left, middle, right = parts
    (bond,) = network.equation.bonds
    sides = [tuple(n for n in core.indices if n != bond) for core in (left, right)]
    matrix = einsum([(folded, legs_of(network))], (*sides[0], *sides[1]))
    matrix = matrix.reshape(prod(network.size[n] for n in sides[0]), -1)
    first, second = split(matrix, network.size[bond])
    return {
        left.name: shaped(first, network, left, (*sides[0], bond)),
        middle.name: folded.new_ones(network.shape(middle)),
        right.name: shaped(second.T, network, right, (*sides[1], bond)),
    }


def _panels(
    folded: Tensor, network: Network, parts: tuple[Core, Core, Core], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return bases of every row and column of blocks; the scales are what the first sweep finds."""
    left, middle, right = parts
    (bond,) = network.equation.bonds
    found = {middle.name: torch.randn(network.shape(middle), generator=generator).double()}
    for core in (left, right):
        blocks = _shared(core, middle, bond)
        own = tuple(n for n in core.indices if n not in middle.indices)
        rest = tuple(n for n in legs_of(network) if n not in blocks and n not in own)
        sizes = [prod(network.size[n] for n in group) for group in (blocks, own, rest)]
        panel = einsum([(folded, legs_of(network))], (*blocks, *own, *rest)).reshape(sizes)
        basis, _, _ = svd(panel)
        rank = network.size[bond]
        extra = torch.randn(*basis.shape[:2], max(0, rank - basis.shape[2]), generator=generator)
        basis = torch.cat([basis[..., :rank], extra.double() / sizes[1] ** 0.5], -1)
        found[core.name] = shaped(basis, network, core, (*blocks, *own, bond))
    found[middle.name] *= folded.norm() / prod(network.shape(middle)) ** 0.5
    return found


fits.register(BlastALS.name)(BlastALS())
