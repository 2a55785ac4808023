"""Rebuild the dense weight of a structure from its cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tnc.derive.dense import dense
from tnc.kernels.einsums import Einsums, lower
from tnc.net import Network, Structure


@dataclass(frozen=True)
class RebuildTerm:
    """One network's dense weight: operands are names of cores, or sizes of identities."""

    operands: tuple[str | int, ...]
    program: Einsums
    covers: tuple[int, ...]
    shape: tuple[int, ...]

    def run(self, cores: Mapping[str, Tensor]) -> Tensor:
        """Return the term's part of the weight, without its padding."""
        like = next(iter(cores.values()))
        values = [
            cores[item]
            if isinstance(item, str)
            else torch.eye(item, dtype=like.dtype, device=like.device)
            for item in self.operands
        ]
        weight = self.program.run(values).reshape(self.covers)
        for dimension, (covered, size) in enumerate(zip(self.covers, self.shape)):
            if covered != size:
                weight = weight.narrow(dimension, 0, size)
        return weight


@dataclass(frozen=True)
class Rebuild:
    """A structure's dense weight, ready to be computed: nothing is left to be searched."""

    terms: tuple[RebuildTerm, ...]

    def run(self, cores: Mapping[str, Tensor]) -> Tensor:
        """Return the dense weight."""
        total = self.terms[0].run(cores)
        for term in self.terms[1:]:
            total = total + term.run(cores)
        return total


@lru_cache(maxsize=4096)
def plan_rebuild(structure: Structure) -> Rebuild:
    """Search the orders in which a structure's cores are contracted, once."""
    return Rebuild(tuple(_term(term, structure) for term in structure.terms))


def rebuild(structure: Structure, cores: Mapping[str, Tensor]) -> Tensor:
    """Return the dense weight, shape `structure.signature.shape`; padding is cropped."""
    return plan_rebuild(structure).run(cores)


def _term(term: Network, structure: Structure) -> RebuildTerm:
    contraction = dense(term)
    operands: list[str | int] = []
    for name, indices in zip(contraction.names, contraction.operands):
        identity = name.startswith("identity:")
        operands.append(contraction.size[indices[0]] if identity else name)
    return RebuildTerm(
        tuple(operands), lower(contraction), term.signature.shape, structure.signature.shape
    )
