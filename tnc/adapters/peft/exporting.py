"""Write an adapter as a checkpoint that PEFT loads with equal outputs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tnc
from tnc.adapters.adapters import Adapters
from tnc.adapters.bank import bank_of, base_weight
from tnc.adapters.converting import changed, check_asked, low_rank
from tnc.adapters.delta import Delta
from tnc.adapters.method import methods, wide
from tnc.adapters.peft import checkpoint
from tnc.adapters.peft.beside import beside
from tnc.adapters.peft.checkpoint import Checkpoint
from tnc.adapters.peft.factors import Pair, exact
from tnc.adapters.peft.layers import (
    EMBEDDING,
    PARAMETER,
    Found,
    Layer,
    Tensors,
    checked,
    is_inputs_first,
    layer_for,
)
from tnc.adapters.peft.naming import (
    PREFIX,
    anchored,
    ends_with,
    is_target,
    looked_up,
    target_expression,
)
from tnc.decide.options import as_mapping
from tnc.errors import ArtifactError
from tnc.nn import StructuredLayer

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


@dataclass(frozen=True)
class Exported:
    """A written checkpoint: its folder, a row for every weight, and what its reader should know."""

    folder: Path
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """The largest relative error of a delta."""
        return max(row.error for row in self.rows)


@dataclass(frozen=True, eq=False)
class Held:
    """One adapted weight where one module holds it, with PEFT's layer for it."""

    path: str
    attribute: str
    delta: Delta
    found: Found
    base: Tensor

    @property
    def layer(self) -> Layer:
        """PEFT's layer."""
        assert self.found.layer is not None
        return self.found.layer

    @property
    def can_scale(self) -> bool:
        """Whether PEFT's layer has a magnitude for every row."""
        plain = self.found.layer is not PARAMETER and not self.found.attention
        return plain and self.delta.site.groups == 1


@dataclass(frozen=True, eq=False)
class Factored:
    """A delta as `scale * pair`, and by what every row of base and delta is then multiplied."""

    held: Held
    pair: Pair
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


def export_peft(
    adapters: Adapters,
    folder: str | Path,
    name: str | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    out_proj_times: int | None = None,
    force: bool = False,
) -> Exported:
    """Write one adapter (the only one) and what is trained beside it for PEFT.

    Every delta that is a product of two matrices is written as one, with frozen offsets beside it
    (the rank of LoRA-GA doubles). Any other is written as the nearest product, of at most `rank` or
    that keeps the share `energy` of the squared norm, as in `Adapters.to_lora`; with neither it is
    refused. The rows of what is returned state rank and error. What was written is read back and
    compared.

    PEFT 0.21.2 adds the delta of `out_proj` of `nn.MultiheadAttention` twice (its issue #3774). For
    an adapter that has one, say by `out_proj_times` how often the PEFT that is to load it does: 2
    writes half of it, 1 the formula.

    Raises ArtifactError with the weight and the reason where PEFT would compute something else.
    """
    name = adapters._one(name)
    check_asked(rank, energy)
    given = _held(adapters, name)
    scalable = all(each.can_scale for each in given)
    made = [factored(each, rank, energy, scalable) for each in given]
    magnitudes = any(each.rows is not None for each in made)
    parts = _grouped(adapters.model, made, magnitudes, out_proj_times)
    saved = beside(adapters.model, {part.path for part in parts if not part.parameter})
    held = [each.held for each in made]
    config = _config(adapters.model, held, parts, magnitudes) | saved.config
    tensors = dict(saved.tensors)
    for part in parts:
        tensors |= {f"{PREFIX}{part.path}.{key}": value for key, value in part.tensors.items()}
    tensors = checked(tensors)
    rows = tuple(row for part in parts for row in part.rows)
    told = {"tnc": json.dumps(_provenance(adapters, name, rows))}
    written = Checkpoint(config, tensors, told)
    _check_matches(adapters.model, config, parts)
    place = Path(folder)
    checkpoint.write(written, place, force=force)
    _check_written(written, checkpoint.read(place), place)
    return Exported(place, rows, (*saved.notes, *_notes(adapters.model, held)))


def _held(adapters: Adapters, name: str) -> list[Held]:
    found: list[Held] = []
    paths: dict[int, list[str]] = {}
    for path, module in adapters.model.named_modules(remove_duplicate=False):
        if bank_of(module) is not None:
            paths.setdefault(id(module), []).append(path)
    for path, module in adapters.model.named_modules():
        bank = bank_of(module)
        for attribute, delta in (bank.held(name) if bank else {}).items():
            assert bank is not None
            layer = layer_for(adapters.model, path, attribute, bank.kind, delta.layer.view)
            twice = paths[id(module)]
            reason = layer.reason
            if len(twice) > 1:
                reason = f"PEFT wraps a module with two paths ({', '.join(twice)}) at the first"
            if reason:
                raise _refused(delta, reason)
            base = _base(module, attribute)
            found.append(Held(path, attribute, delta, layer, base))
    if not found:
        raise ArtifactError(f"the adapter {name!r} has no weight")
    return found


def _base(module: nn.Module, attribute: str) -> Tensor:
    if isinstance(module, StructuredLayer):
        found: Tensor = StructuredLayer.weight.fget(module)  # type: ignore[attr-defined]
        return found.detach()
    return base_weight(module, attribute).detach()


def _refused(delta: Delta, reason: str) -> ArtifactError:
    return ArtifactError(
        f"PEFT has no form for the adapter of {delta.site.name}: {reason}",
        where=delta.site.name,
        hint="leave the weight out, or merge: adapters.unload() gives a plain model",
    )


def _grouped(
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
        dense = delta.mapped(delta.dense()).flatten(1) if scales else changed(delta, 1.0, held.base)
        pair = exact(delta.layer.structure, delta.tensors())
        if pair is not None and pair.rank <= (rank or min(dense.shape[-2:])):
            gap = float((pair.dense().to(dense.dtype) * delta.factor - dense).norm())
            pair = replace(pair, error=gap / float(dense.norm().clamp_min(1e-30)))
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
            hint="give rank= or energy= for the nearest LoRA, or merge: adapters.unload()",
        )
    found = low_rank([(delta, 1.0)], held.base, rank, energy)
    return Factored(held, Pair(found.b, found.a, found.error), 1.0)


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
            hint="say out_proj_times=2 for such a PEFT, 1 for one that adds it once",
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
            pair = Pair(
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


def _config(
    model: nn.Module, held: Sequence[Held], parts: Sequence[Wrapped], magnitudes: bool
) -> dict[str, Any]:
    ranks = {part.target: part.rank for part in parts}
    alphas = {part.target: _number(part.scale * part.rank) for part in parts}
    common_rank, common_alpha = _commonest(ranks.values()), _commonest(alphas.values())
    modules = [part.path for part in parts if not part.parameter]
    dropouts = {each.delta.dropout for each in held}
    config = getattr(model, "config", None)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        },
        "base_model_name_or_path": getattr(config, "_name_or_path", None) or None,
        "revision": None,
        "inference_mode": True,
        "r": common_rank,
        "lora_alpha": common_alpha,
        "rank_pattern": {anchored(k): v for k, v in ranks.items() if v != common_rank},
        "alpha_pattern": {anchored(k): v for k, v in alphas.items() if v != common_alpha},
        "target_modules": target_expression(modules) if modules else [],
        "target_parameters": [part.target for part in parts if part.parameter] or None,
        "use_rslora": False,
        "use_dora": magnitudes,
        "lora_dropout": dropouts.pop() if len(dropouts) == 1 else 0.0,
        "init_lora_weights": True,
        "bias": "none",
        "fan_in_fan_out": any(
            is_inputs_first(model.get_submodule(each.path)) for each in held if each.path
        ),
        "modules_to_save": None,
    }


def _commonest(values: Any) -> Any:
    counted = Counter(values)
    most = max(counted.values())
    return min(value for value, count in counted.items() if count == most)


def _number(value: float) -> int | float:
    """Return a whole number as one: alpha is one in every checkpoint that people write."""
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value


def _check_matches(model: nn.Module, config: Mapping[str, Any], parts: Sequence[Wrapped]) -> None:
    """Raise ArtifactError where PEFT would choose other modules, ranks or scales than was meant."""
    meant = {part.path for part in parts if not part.parameter}
    paths = {path for path, module in model.named_modules() if "adapters_" not in path.split(".")}
    chosen = {path for path in paths if is_target(config, path)}
    if chosen != meant:
        odd = sorted(chosen ^ meant)[0]
        raise ArtifactError(
            f"PEFT's rules of matching would not do what is meant with {odd!r}",
            where=odd,
            hint="a module that is trained whole must not end like, or hold, an adapted one",
        )
    for part in parts:
        rank = looked_up(config["rank_pattern"], part.target, config["r"])
        alpha = looked_up(config["alpha_pattern"], part.target, config["lora_alpha"])
        assert rank == part.rank and abs(alpha / rank - part.scale) <= 1e-6 * abs(part.scale)
    targets = config["target_parameters"] or []
    for path, module in model.named_modules():
        for name in module._parameters if "adapters_" not in path.split(".") else ():
            full = f"{path}.{name}"
            if ends_with(full, targets) and full not in targets:
                raise ArtifactError(
                    f"PEFT would adapt {full!r} too: its name ends like an adapted one", where=full
                )


def _check_written(made: Checkpoint, read: Checkpoint, folder: Path) -> None:
    same = made.tensors.keys() == read.tensors.keys() and dict(made.config) == dict(read.config)
    if not same or any(not torch.equal(made.tensors[k], read.tensors[k]) for k in made.tensors):
        raise ArtifactError("what was written is not what is read back", where=str(folder))


def _provenance(adapters: Adapters, name: str, rows: Sequence[Row]) -> dict[str, Any]:
    told = {}
    for path, delta in adapters.deltas(name).items():
        told[path] = as_mapping(methods, delta.method)
    return {
        "tnc": tnc.__version__,
        "adapter": name,
        "methods": told,
        "errors": {row.weight: row.error for row in rows if row.error > EXACT},
    }


def _notes(model: nn.Module, held: Sequence[Held]) -> tuple[str, ...]:
    found = []
    for each in held:
        site = each.delta.site
        if isinstance(model.get_submodule(each.path), StructuredLayer):
            found.append(f"{site.name}: PEFT needs this layer dense (the pass `densify`)")
        if len(site.aliases) > 1:
            found.append(
                f"{site.name} is tied: PEFT trains an adapter of its own for each of "
                f"{', '.join(site.aliases)}, and merging them there adds both to one weight"
            )
    if len({each.delta.dropout for each in held}) > 1:
        found.append("dropouts differ: PEFT has one for all, 0 was written")
    return tuple(dict.fromkeys(found))
