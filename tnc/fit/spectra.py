"""Singular values at a bond: the error that each of its ranks leaves, before any fit."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tnc.derive.cut import Cut, cut
from tnc.errors import FitError
from tnc.fit.folding import fold
from tnc.fit.metric import Metric, widest
from tnc.fit.named_einsum import Named, einsum
from tnc.fit.pair import Pair, blocks_of
from tnc.fit.projection import project
from tnc.fit.whitening import trace_scale, whiten
from tnc.net import Core, Equation, Network, Signature


def spectrum(
    weight: Tensor,
    network: Network,
    bond: str,
    metric: Metric | None = None,
    signature: Signature | None = None,
) -> Tensor:
    """Return the singular values at a bond, descending, float64: `[k]`, `[blocks, k]` for batches.

    The weight is unfolded by the legs that the bond parts, one matrix for each value of the legs
    on both sides. Ranks in `network` do not matter. A metric is honoured exactly where all its
    legs lie on one side of the cut; else each side is whitened by its marginal moment (diagonal
    blocks over shared legs), a surrogate. Raises FitError for bonds that do not cut the network.
    """
    metric, signature = metric or Metric(), signature or _own_signature(weight, network)
    metric.check(signature)
    parted = cut(network.equation, bond)
    if parted is None:
        raise FitError(
            f"bond {bond} does not part the network in two, it has no singular values",
            where=f"network {network}",
            hint="score candidate ranks by fits",
        )
    sides = _two_sides(network, parted)
    whitening = whiten(sides, signature, metric)
    folded = whitening.weight(fold(widest(weight.detach()), sides))
    blocks = blocks_of(folded, sides, _pair(sides, parted))
    values: Tensor = torch.linalg.svdvals(blocks)
    weights = _block_weights(sides, parted, signature, metric)
    values *= weights.reshape(-1, 1).sqrt()
    return values if parted.batch else values[0]


def tails(
    weight: Tensor,
    network: Network,
    bond: str,
    metric: Metric | None = None,
    signature: Signature | None = None,
) -> Tensor:
    """Return `tails[r]`, the squared metric error when the bond has rank r, for r = 0..bound.

    The sum of squared singular values beyond r, over all blocks. See `spectrum` for when it is
    exact; `tails[0]` is then the squared norm of the weight. Entries decrease to zero.
    """
    found = _projected(weight, network, bond, metric, signature)
    if found is None:
        found = spectrum(weight, network, bond, metric, signature).square()
    squares = found
    if squares.ndim == 2:
        squares = squares.sum(0)
    beyond = squares.flip(0).cumsum(0).flip(0)
    return torch.cat([beyond, beyond.new_zeros(1)])


def _projected(
    weight: Tensor, network: Network, bond: str, metric: Metric | None, signature: Signature | None
) -> Tensor | None:
    """Return squared singular values by the smaller side, where a metric parts like the bond."""
    parted = cut(network.equation, bond)
    own = signature or _own_signature(weight, network)
    if metric is None or metric.plain or parted is None or parted.batch or weight.is_complex():
        return None
    outputs = set(network.equation.output_indices)
    if outputs not in (set(parted.left), set(parted.right)) or network.signature != own:
        return None
    metric.check(own)
    return project(weight.detach().double().reshape(prod(own.outputs), -1), metric)[2]


def _own_signature(weight: Tensor, network: Network) -> Signature:
    outputs = len(network.equation.outputs)
    shape = tuple(weight.shape)
    return Signature(shape[:outputs], shape[outputs:])


def _two_sides(network: Network, parted: Cut) -> Network:
    """Return the cut as a network of two cores with the bond between them."""
    equation = network.equation
    bond = "r"
    while bond in network.size:
        bond += "r"
    shared = tuple(dict.fromkeys(parted.batch))
    cores = (
        Core("Left", (*shared, *parted.left, bond)),
        Core("Right", (*shared, *parted.right, bond)),
    )
    legs = (*shared, *parted.left, *parted.right)
    sizes = {name: network.size[name] for name in legs} | {bond: 1}
    return Network.of(Equation(cores, equation.inputs, equation.outputs), sizes)


def _pair(sides: Network, parted: Cut) -> Pair:
    first, second = sides.equation.cores
    return Pair((first, second), (parted.left, parted.right), sides.equation.bonds, parted.batch)


def _block_weights(sides: Network, parted: Cut, signature: Signature, metric: Metric) -> Tensor:
    """Return what product whitening leaves out, for each block."""
    ones: Named = (
        torch.ones([sides.size[n] for n in parted.batch], dtype=torch.float64),
        parted.batch,
    )
    parts = [ones, *trace_scale(sides, signature, metric)]
    found = einsum(parts, parted.batch)
    return found.reshape(max(1, prod(sides.size[n] for n in parted.batch)))
