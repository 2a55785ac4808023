"""Between the model's dimensions and the legs of a network: pad and fold, unfold and crop.

Padded entries are zeros here. Fits by alternating least squares leave them free: they pull
residuals back, and what padding would hold has no residual.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor

from tnc.derive import dense
from tnc.fit.named_einsum import contract
from tnc.net import Axis, Network, Signature, Structure


def fold(tensor: Tensor, term: Network) -> Tensor:
    """Pad `signature.shape` to what the term covers and split every dimension into its legs."""
    return _pad(tensor, term.signature.shape).reshape(leg_shape(term))


def crop(tensor: Tensor, term: Network, signature: Signature) -> Tensor:
    """Join legs to dimensions and cut the padding away; the inverse of `fold`."""
    whole = tensor.reshape(term.signature.shape)
    return whole[tuple(slice(0, size) for size in signature.shape)]


def leg_shape(term: Network) -> tuple[int, ...]:
    """Return the size of every leg: outputs, then inputs."""
    equation = term.equation
    return tuple(term.size[n] for n in (*equation.output_indices, *equation.input_indices))


def legs_of(term: Network) -> Axis:
    """Return the names of the dimensions of a folded weight; shared input legs are primed."""
    return dense(term).output


def fold_side(tensor: Tensor, term: Network, signature: Signature, side: str) -> Tensor:
    """Fold a vector (n,) or matrix (n, n) over one side into legs, or legs twice, with padding."""
    given = signature.inputs if side == "inputs" else signature.outputs
    covered = term.signature.inputs if side == "inputs" else term.signature.outputs
    legs = tuple(term.size[n] for n in side_legs(term, side))
    times = tensor.ndim
    return _pad(tensor.reshape(given * times), covered * times).reshape(legs * times)


def side_legs(term: Network, side: str) -> Axis:
    """Return the legs of one side, 'inputs' or 'outputs'."""
    equation = term.equation
    return equation.input_indices if side == "inputs" else equation.output_indices


def reconstruct(structure: Structure, cores: Mapping[str, Tensor]) -> Tensor:
    """Return the dense weight of a structure: the sum of its terms, padding cut away.

    `W[o.., i..] = sum_t dense_t(cores)`, of shape `structure.signature.shape`.
    """
    total: Tensor | None = None
    for term in structure.terms:
        held = {core.name: cores[core.name] for core in term.equation.cores}
        part = crop(contract(dense(term), held), term, structure.signature)
        total = part if total is None else total + part
    assert total is not None  # a structure has a term
    return total


def _pad(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    missing = [to - have for have, to in zip(tensor.shape, shape)]
    if not any(missing):
        return tensor
    widths = chain.from_iterable((0, width) for width in reversed(missing))
    return torch.nn.functional.pad(tensor, list(widths))
