"""Deltas as low-rank pairs: exactly, or by truncated SVD with the error said."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnc.adapters.attach import attach_
from tnc.adapters.bank import bank_of, check_name
from tnc.adapters.combined import Using, changed
from tnc.adapters.delta import Delta
from tnc.adapters.low_rank import LowRank, nearest, nearest_of_product
from tnc.adapters.method import methods
from tnc.adapters.place import Place
from tnc.adapters.products import stacked
from tnc.adapters.start import Parts, wide
from tnc.errors import PlanError


@dataclass(frozen=True)
class Line:
    """One converted weight: rank, relative error, and the norm of the change."""

    weight: str
    rank: int
    error: float
    norm: float


@dataclass(frozen=True)
class Conversion:
    """What a conversion made, by weight; `error` is that of all weights together, relative."""

    adapter: str
    lines: tuple[Line, ...]

    @property
    def error(self) -> float:
        """The norm of all that is lost over the norm of all changes."""
        lost = sum((line.error * line.norm) ** 2 for line in self.lines)
        whole = sum(line.norm**2 for line in self.lines)
        return float((lost / whole) ** 0.5) if whole else 0.0

    def __str__(self) -> str:
        head = f"{self.adapter}: {len(self.lines)} weights, relative error {self.error:.3g}"
        rows = [f"  {line.weight}: rank {line.rank}, error {line.error:.3g}" for line in self.lines]
        return "\n".join([head, *rows])


def additive(delta: Delta) -> bool:
    """Whether what merging adds is the delta itself, whatever the weight is."""
    kind = type(delta.method)
    return kind.plain() and not kind.scales_rows()


def low_rank(
    parts: Using,
    weight: Tensor,
    rank: int | None = None,
    energy: float | None = None,
) -> tuple[LowRank, float]:
    """Return what deltas of one weight add, each times its share, as the best `B A`; and its norm.

    `weight` is the base in its stored layout. `rank` is the largest, `energy` the least share of
    the squared norm to be kept; without either the result is exact to rounding, that of the
    weight. Sums of chains are never made dense.
    """
    found = [delta.pairs(share) if additive(delta) else () for delta, share in parts]
    if all(found):
        down, up, scale = stacked([pair for pairs in found for pair in pairs])
        return nearest_of_product(wide(up * scale), wide(down.flatten(1)), rank, energy)
    dense = change_of(parts, weight)
    if dense.norm() <= 8 * torch.finfo(dense.dtype).eps * wide(weight).norm():
        dense = torch.zeros_like(dense)  # what is left when methods take the weight away again
    return nearest(dense, rank, energy)


def change_of(parts: Using, weight: Tensor) -> Tensor:
    """Return what deltas add to their weight as a matrix, or one for each of a stack."""
    delta = parts[0][0]
    kinds = [type(each.method) for each, _ in parts]
    with torch.no_grad():
        if all(kind.plain() and not kind.scales_rows() for kind in kinds):  # nothing cancels
            change = torch.stack([wide(each.dense()) * share for each, share in parts]).sum(0)
        else:
            whole = wide(weight)
            change = wide(changed(parts, whole) - whole)
    outputs = delta.site.signature.outputs
    shape = (*outputs[:-1], outputs[-1], -1)
    return delta.mapped(change).reshape(shape)


def put_low_rank_(model: nn.Module, place: Place, adapter: str, found: LowRank) -> Delta:
    """Put a pair beside a weight as a LoRA adapter of factor 1, not in use."""
    check_name(adapter)
    method = methods.get("lora")(rank=found.rank)  # type: ignore[call-arg]
    structure = method.structure(place.site)
    shapes = structure.shapes
    parts = Parts({"B": found.left.reshape(shapes["B"]), "A": found.right.reshape(shapes["A"])})
    delta = attach_(model, place, adapter, method, structure, parts)
    for owner in place.owners:
        bank = bank_of(model.get_submodule(owner.path))
        assert bank is not None
        bank.switch(adapter, None)
    return delta


def check_asked(rank: int | None, energy: float | None) -> None:
    """Raise PlanError for ranks and shares that are none."""
    if rank is not None and rank < 1:
        raise PlanError(f"rank is {rank}", hint="a low-rank delta has a rank from 1")
    if energy is not None and not 0 < energy <= 1:
        raise PlanError(f"energy is {energy}", hint="give a share above 0, at most 1")
