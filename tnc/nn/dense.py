"""Rebuild the dense weight of a structure from its cores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tnc.derive.dense import dense
from tnc.net import Network, Structure
from tnc.nn.program import lower


def rebuild(structure: Structure, cores: Mapping[str, Tensor]) -> Tensor:
    """Return the dense weight, shape `structure.signature.shape`; padding is cropped."""
    total: Tensor | None = None
    for term in structure.terms:
        part = _rebuild_term(term, structure, cores)
        total = part if total is None else total + part
    assert total is not None
    return total


def _rebuild_term(term: Network, structure: Structure, cores: Mapping[str, Tensor]) -> Tensor:
    contraction = dense(term)
    operands = []
    like = next(iter(cores.values()))
    for name, indices in zip(contraction.names, contraction.operands):
        if name.startswith("identity:"):
            size = contraction.size[indices[0]]
            operands.append(torch.eye(size, dtype=like.dtype, device=like.device))
        else:
            operands.append(cores[name])
    weight = lower(contraction).run(operands).reshape(term.signature.shape)
    for dimension, size in enumerate(structure.signature.shape):
        if weight.shape[dimension] != size:
            weight = weight.narrow(dimension, 0, size)
    return weight
