"""Two cores: one truncated SVD of the weight unfolded between them, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tnc.fit.folding import legs_of
from tnc.fit.method import Outcome
from tnc.fit.named_einsum import einsum
from tnc.net import Axis, Core, Network


@dataclass(frozen=True)
class Pair:
    """Two cores with their own legs, the bonds between them, and the legs that both carry."""

    cores: tuple[Core, Core]
    legs: tuple[Axis, Axis]
    bonds: Axis
    batch: Axis


def pair_of(network: Network) -> Pair | str:
    """Return the two cores of a network, or say why it does not have that form."""
    equation = network.equation
    if len(equation.cores) != 2:
        return f"it has {len(equation.cores)} cores, not two"
    first, second = equation.cores
    bonds = tuple(n for n in equation.bonds)
    loose = [n for n in bonds if n not in first.indices or n not in second.indices]
    if loose:
        return f"bond {loose[0]} does not join the two cores"
    held = (*first.indices, *second.indices)
    bare = [n for n in legs_in(network) if n not in held]
    if bare:
        return f"leg {bare[0]} hangs on no core"
    batch = tuple(
        n
        for n in legs_in(network)
        if (n in first.indices and n in second.indices) or n in equation.shared
    )
    joined = {*bonds, *batch}
    own = [tuple(n for n in core.indices if n not in joined) for core in (first, second)]
    partial = [n for n in batch if n not in first.indices or n not in second.indices]
    if partial:
        return f"leg {partial[0]} is input and output at once but not on both cores"
    return Pair((first, second), (own[0], own[1]), bonds, batch)


def legs_in(network: Network) -> Axis:
    """Return every leg once, outputs first."""
    equation = network.equation
    return tuple(dict.fromkeys((*equation.output_indices, *equation.input_indices)))


def blocks_of(folded: Tensor, network: Network, pair: Pair) -> Tensor:
    """Unfold a weight to `[batch, left, right]`; off-diagonal blocks of shared legs are dropped."""
    axes = legs_of(network)
    parts = [(folded, axes)]
    inputs = axes[len(network.equation.output_indices) :]
    for name, copy in zip(network.equation.input_indices, inputs):
        if name != copy:
            parts.append((torch.eye(network.size[name], dtype=folded.dtype), (name, copy)))
    matrix = einsum(parts, (*pair.batch, *pair.legs[0], *pair.legs[1]))
    sizes = [prod(network.size[n] for n in group) for group in (pair.batch, *pair.legs)]
    return matrix.reshape(sizes)


def solve_pair(folded: Tensor, network: Network, pair: Pair) -> Outcome:
    """Return the best two cores in the plain norm (Eckart and Young, 1936), equally large."""
    rank = prod(network.size[n] for n in pair.bonds)
    left, right = split(blocks_of(folded, network, pair), rank)
    return Outcome(assembled(network, pair, left, right))


def assembled(network: Network, pair: Pair, left: Tensor, right: Tensor) -> dict[str, Tensor]:
    """Fold `[.., left, rank]` and `[.., rank, right]` into the two cores of a pair."""
    sizes = network.size
    found = {}
    for core, legs, factor in zip(pair.cores, pair.legs, (left, right.mT)):
        axes = (*pair.batch, *legs, *pair.bonds)
        tensor = factor.reshape([sizes[n] for n in axes])
        found[core.name] = tensor.permute([axes.index(n) for n in core.indices]).contiguous()
    return found


def split(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return `[.., left, rank]` and `[.., rank, right]` whose product is the best approximation.

    Singular values are shared by square root; ranks beyond the matrix are filled with zeros.
    """
    u, s, v = svd(blocks)
    root = s.sqrt()
    left, right = u * root.unsqueeze(-2), root.unsqueeze(-1) * v
    have = s.shape[-1]
    if have < rank:
        left = torch.nn.functional.pad(left, (0, rank - have))
        right = torch.nn.functional.pad(right, (0, 0, 0, rank - have))
    return left[..., :rank], right[..., :rank, :]


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a reduced SVD `u s v` whose left vectors have their largest entry positive."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    phase = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sgn()
    phase = torch.where(phase == 0, torch.ones_like(phase), phase)
    return u * phase.conj(), s, v * phase.mT
