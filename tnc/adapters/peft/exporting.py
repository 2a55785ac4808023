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
from tnc.adapters.methods.dora import DoRA
from tnc.adapters.peft import checkpoint
from tnc.adapters.peft.beside import beside
from tnc.adapters.peft.checkpoint import Checkpoint
from tnc.adapters.peft.factors import Pair, exact
from tnc.adapters.peft.layers import (
    EMBEDDING,
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


@dataclass(frozen=True)
class Size:
    """How large the nearest product may be of a delta that is none."""

    rank: int | None
    energy: float | None


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
    held = _held(adapters, name)
    magnitudes = any(isinstance(each.delta.method, DoRA) for each in held)
    check_asked(rank, energy)
    size = Size(rank, energy)
    parts = _grouped(adapters.model, held, magnitudes, size, out_proj_times)
    saved = beside(adapters.model, {part.path for part in parts if not part.parameter})
    config = _config(adapters.model, held, parts, magnitudes) | saved.config
    tensors = dict(saved.tensors)
    for part in parts:
        tensors |= {f"{PREFIX}{part.path}.{key}": value for key, value in part.tensors.items()}
    tensors = checked(tensors)
    rows = tuple(row for part in parts for row in part.rows)
    made = Checkpoint(config, tensors, {"tnc": json.dumps(_provenance(adapters, name, rows))})
    _check_matches(adapters.model, config, parts)
    place = Path(folder)
    checkpoint.write(made, place, force=force)
    _check_written(made, checkpoint.read(place), place)
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
    model: nn.Module,
    held: Sequence[Held],
    magnitudes: bool,
    size: Size,
    times: int | None,
) -> list[Wrapped]:
    attention: dict[str, list[Held]] = {}
    parameters: dict[str, list[Held]] = {}
    found = []
    for each in held:
        if each.found.attention:
            inside = each.attribute != "in_proj_weight"
            path = each.path.rpartition(".")[0] if inside else each.path
            attention.setdefault(path, []).append(each)
        elif each.attribute != "weight" or not bank_kind(model, each.path):
            parameters.setdefault(each.path, []).append(each)
        else:
            found.append(_plain(model, each, magnitudes, size))
    for path, pair in attention.items():
        if magnitudes:
            raise _refused(pair[0].delta, "PEFT's attention has no DoRA")
        found.append(_attention(model, path, pair, size, times))
    for path, several in parameters.items():
        if magnitudes:
            raise _refused(several[0].delta, "PEFT's DoRA is not for bare parameters")
        found += _parameters(model, path, several, size)
    return sorted(found, key=lambda part: part.target)


def bank_kind(model: nn.Module, path: str) -> str:
    """Return by which kind an adapted module applies its weight."""
    bank = bank_of(model.get_submodule(path))
    return bank.kind if bank is not None else ""


@torch.no_grad()
def factored(each: Held, size: Size) -> tuple[Pair, float]:
    """Return the pair of a delta and the scale by which it is multiplied.

    The pair's error is that of scale times pair with respect to what merging adds to the weight
    (before the magnitude of DoRA). Raises ArtifactError for a delta that is no product.
    """
    delta = each.delta
    normed = isinstance(delta.method, DoRA)
    dense = delta.mapped(delta.dense()).flatten(1) if normed else changed(delta, 1.0, each.base)
    most = min(dense.shape[-2:]) if size.rank is None else size.rank
    pair = exact(delta.layer.structure, delta.tensors())
    if pair is not None and pair.rank <= most:
        gap = float((pair.dense().to(dense.dtype) * delta.factor - dense).norm())
        pair = replace(pair, error=gap / float(dense.norm().clamp_min(1e-30)))
        if pair.error <= EXACT:
            return pair, delta.factor
    if normed:
        raise _refused(delta, "the magnitude of DoRA belongs to the whole delta")
    if size.rank is None and size.energy is None:
        raise ArtifactError(
            f"what {delta.method} adds to {delta.site.name} is no product of two smaller matrices",
            where=delta.site.name,
            hint="give rank= or energy= for the nearest LoRA, or merge: adapters.unload()",
        )
    found = low_rank([(delta, 1.0)], each.base, size.rank, size.energy)
    return Pair(found.b, found.a, found.error), 1.0


def _plain(model: nn.Module, each: Held, magnitudes: bool, size: Size) -> Wrapped:
    pair, scale = factored(each, size)
    module = model.get_submodule(each.path)
    tensors = each.layer.write(module, each.delta.site, pair)
    if magnitudes:
        if each.delta.site.groups > 1:
            raise _refused(each.delta, "PEFT's DoRA is not for convolutions in groups")
        values = _magnitude(each, pair, scale)
        tensors["lora_magnitude_vector"] = each.layer.magnitude(each.delta.site, values)
    written = tensors[each.layer.suffixes[0]].shape[0]
    row = _row(each, written, scale, pair)
    return Wrapped(each.path, each.path, written, scale, tensors, (row,))


def _magnitude(each: Held, pair: Pair, scale: float) -> Tensor:
    """Return DoRA's magnitude; for another delta the one that leaves it as it is."""
    if isinstance(each.delta.method, DoRA):
        own: Tensor = each.delta.extras["magnitude"].detach()
        return own
    whole = wide(each.delta.mapped(each.base)).flatten(1)
    whole = whole + scale * pair.dense().to(whole.dtype)
    found: Tensor = whole.norm(dim=0 if each.layer is EMBEDDING else 1)
    return found


def _attention(
    model: nn.Module, path: str, held: Sequence[Held], size: Size, times: int | None
) -> Wrapped:
    """Write both projections of an attention, as PEFT has them: one rank, one scale."""
    module: Any = model.get_submodule(path)
    parts = {each.attribute: (each, *factored(each, size)) for each in held}
    if "weight" in parts and times is None:
        raise ArtifactError(
            f"PEFT 0.21.2 adds the delta of {path}.out_proj twice",
            where=path,
            hint="say out_proj_times=2 for such a PEFT, 1 for one that adds it once",
        )
    top = max(pair.rank for _, pair, _ in parts.values())
    scale = next(iter(parts.values()))[2]
    tensors: Tensors = {}
    rows = []
    for attribute, behind in (("in_proj_weight", ""), ("weight", "base_layer.out_proj.")):
        if attribute in parts:
            each, pair, own = parts[attribute]
            rows.append(_row(each, top, own, pair))
            share = own / scale / (times if behind and times else 1)
            pair = replace(pair, left=pair.left * share).widened(top)
        else:
            weight = module.in_proj_weight if not behind else module.out_proj.weight
            pair = Pair(
                weight.new_zeros(weight.shape[0], top), weight.new_zeros(top, weight.shape[1])
            )
        tensors |= {f"{behind}lora_A.weight": pair.right, f"{behind}lora_B.weight": pair.left}
    return Wrapped(path, path, top, scale, tensors, tuple(rows))


def _parameters(model: nn.Module, path: str, held: Sequence[Held], size: Size) -> list[Wrapped]:
    """Write parameters that a module's code reads; PEFT wraps them one in the other."""
    module = model.get_submodule(path)
    by_name = {each.attribute: each for each in held}
    order = [name for name in _stored_names(module) if name in by_name]
    found = []
    for depth, attribute in enumerate(reversed(order)):
        each = by_name[attribute]
        pair, scale = factored(each, size)
        behind = "base_layer." * depth
        tensors = each.layer.write(module, each.delta.site, pair)
        tensors = {f"{behind}{key}": value for key, value in tensors.items()}
        row = _row(each, pair.rank, scale, pair)
        target = f"{path}.{attribute}"
        found.append(Wrapped(path, target, pair.rank, scale, tensors, (row,), parameter=True))
    return found


def _stored_names(module: nn.Module) -> list[str]:
    return list(module._parameters)


def _row(each: Held, rank: int, scale: float, pair: Pair) -> Row:
    note = ""
    if each.delta.site.groups > 1:
        note = f"rank {pair.rank} for each of {each.delta.site.groups} groups"
    method = str(each.delta.method)
    weight = f"{each.path}.{each.attribute}" if each.path else each.attribute
    return Row(weight, method, rank, scale, pair.error, note)


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
