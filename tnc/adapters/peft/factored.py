"""Deltas as the products of two matrices that PEFT's LoRA stores, module by module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.converting import change_of, low_rank
from tnc.adapters.low_rank import LowRank
from tnc.adapters.peft.cutting import cut
from tnc.adapters.peft.held import Held
from tnc.adapters.peft.layers import EMBEDDING, PARAMETER, Tensors
from tnc.adapters.start import wide
from tnc.errors import ArtifactError

EXACT = 1e-5
"""The relative error below which a pair stands for its delta."""


@dataclass(frozen=True)
class Row:
    """What became of one weight: the rank it was written with and the relative error of it."""

    weight: str
    method: str
    rank: int
    scale: float
    error: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class Factored:
    """A delta as `scale * pair`, and by what every row of base and delta is then multiplied."""

    held: Held
    pair: LowRank
    scale: float
    rows: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Wrapped:
    """What PEFT wraps: tensors by their key behind the path, one rank and one scale.

    `target` is what patterns are matched with: the path, or that of the parameter.
    """

    path: str
    target: str
    rank: int
    scale: float
    tensors: Tensors = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    parameter: bool = False


def grouped(
    model: nn.Module, made: Sequence[Factored], magnitudes: bool, times: int | None
) -> list[Wrapped]:
    """Return what PEFT wraps, by the name that its patterns are matched with."""
    attention: dict[str, list[Factored]] = {}
    parameters: dict[str, list[Factored]] = {}
    found = []
    for each in made:
        held = each.held
        if held.found.attention:
            inside = held.attribute != "in_proj_weight"
            path = held.path.rpartition(".")[0] if inside else held.path
            attention.setdefault(path, []).append(each)
        elif held.layer is PARAMETER:
            parameters.setdefault(held.path, []).append(each)
        else:
            found.append(_plain(model, each, magnitudes))
    found += [_attention(model, path, pair, times) for path, pair in attention.items()]
    for path, several in parameters.items():
        found += _parameters(model, path, several)
    return sorted(found, key=lambda part: part.target)


@torch.no_grad()
def factored(held: Held, rank: int | None, energy: float | None, scalable: bool) -> Factored:
    """Return the product that stands for a delta: its own, or the nearest.

    `scalable` tells that PEFT can multiply the rows of all the weights beside it, which it does for
    all or none. The pair's error is that of scale times pair with respect to what merging adds to
    the weight, before rows are multiplied. Raises ArtifactError for a delta that is no product.
    """
    delta = held.delta
    scales = delta.method.scales_rows()
    if not scales or scalable:
        dense = (
            delta.mapped(delta.dense()).flatten(1)
            if scales
            else change_of([(delta, 1.0)], held.base)
        )
        pair = cut(delta.layer.structure, delta.tensors())
        if pair is not None and pair.rank <= (rank or min(dense.shape[-2:])):
            pair = replace(pair, error=_error(pair, delta.factor, dense))
            if pair.error <= EXACT:
                rows = delta.method.rows(delta, held.base) if scales else None
                return Factored(held, pair, delta.factor, rows)
    if rank is None and energy is None:
        told = f"what {delta.method} adds to {delta.site.name} is no product of smaller matrices"
        if scales and not scalable:
            told = f"PEFT cannot scale the rows of all of these weights, as {delta.method} does"
        raise ArtifactError(
            told,
            where=delta.site.name,
            hint="give rank= or energy= (--peft-rank, --peft-energy) for the nearest LoRA, or "
            "merge: adapters.unload()",
        )
    found, _ = low_rank([(delta, 1.0)], held.base, rank, energy)
    return Factored(held, found, 1.0)


def _error(pair: LowRank, factor: float, dense: Tensor) -> float:
    """Return the relative error of factor times pair; 0 where the factors' rounding explains it.

    A start that is subtracted again leaves nothing but that.
    """
    gap = float((pair.dense().to(dense.dtype) * factor - dense).norm())
    size = abs(factor) * float(wide(pair.left).norm() * wide(pair.right).norm())
    if gap <= 8 * torch.finfo(dense.dtype).eps * size:
        return 0.0
    return gap / float(dense.norm().clamp_min(1e-30))


def _plain(model: nn.Module, each: Factored, magnitudes: bool) -> Wrapped:
    held, site = each.held, each.held.delta.site
    tensors = held.layer.write(model.get_submodule(held.path), site, each.pair)
    if magnitudes:
        tensors["lora_magnitude_vector"] = held.layer.magnitude(site, _magnitude(each))
    written = tensors[held.layer.suffixes[0]].shape[0]
    row = _row(each, written)
    return Wrapped(held.path, held.path, written, each.scale, tensors, (row,))


def _magnitude(each: Factored) -> Tensor:
    """Return DoRA's magnitude; of a delta that scales no rows the one that leaves it as it is."""
    whole = wide(each.held.delta.mapped(each.held.base)).flatten(1)
    whole = whole + each.scale * each.pair.dense().to(whole.dtype)
    norms: Tensor = whole.norm(dim=0 if each.held.layer is EMBEDDING else 1)
    return norms if each.rows is None else norms * each.rows.to(norms.dtype)


def _attention(model: nn.Module, path: str, made: Sequence[Factored], times: int | None) -> Wrapped:
    """Write both projections of an attention, as PEFT has them: one rank, one scale."""
    module: Any = model.get_submodule(path)
    parts = {each.held.attribute: each for each in made}
    if "weight" in parts and times is None:
        raise ArtifactError(
            f"PEFT 0.21.2 adds the delta of {path}.out_proj twice",
            where=path,
            hint="say out_proj_times=2 (--out-proj-times 2) for such a PEFT, 1 for one that adds "
            "it once",
        )
    top = max(each.pair.rank for each in made)
    scale = made[0].scale
    tensors: Tensors = {}
    rows = []
    for attribute, behind in (("in_proj_weight", ""), ("weight", "base_layer.out_proj.")):
        if attribute in parts:
            each = parts[attribute]
            rows.append(_row(each, top))
            share = each.scale / scale / (times if behind and times else 1)
            pair = replace(each.pair, left=each.pair.left * share).widened(top)
        else:
            weight = module.in_proj_weight if not behind else module.out_proj.weight
            pair = LowRank(
                weight.new_zeros(weight.shape[0], top), weight.new_zeros(top, weight.shape[1])
            )
        tensors |= {f"{behind}lora_A.weight": pair.right, f"{behind}lora_B.weight": pair.left}
    return Wrapped(path, path, top, scale, tensors, tuple(rows))


def _parameters(model: nn.Module, path: str, made: Sequence[Factored]) -> list[Wrapped]:
    """Write parameters that a module's code reads; PEFT wraps them one in the other."""
    module = model.get_submodule(path)
    by_name = {each.held.attribute: each for each in made}
    order = [name for name in module._parameters if name in by_name]
    found = []
    for depth, attribute in enumerate(reversed(order)):
        each = by_name[attribute]
        tensors = each.held.layer.write(module, each.held.delta.site, each.pair)
        behind = "base_layer." * depth
        tensors = {f"{behind}{key}": value for key, value in tensors.items()}
        target, rank = f"{path}.{attribute}", each.pair.rank
        row = _row(each, rank)
        found.append(Wrapped(path, target, rank, each.scale, tensors, (row,), parameter=True))
    return found


def _row(each: Factored, rank: int) -> Row:
    held, groups = each.held, each.held.delta.site.groups
    note = f"rank {each.pair.rank} for each of {groups} groups" if groups > 1 else ""
    weight = f"{held.path}.{held.attribute}" if held.path else held.attribute
    return Row(weight, str(held.delta.method), rank, each.scale, each.pair.error, note)
