"""Read checkpoints of PEFT beside a model's weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.adapters import Adapters
from tnc.adapters.attach import attach_, shared_copy
from tnc.adapters.bank import BANK
from tnc.adapters.equations import with_start
from tnc.adapters.method import Parts, wide
from tnc.adapters.methods.dora import DoRA
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.peft import checkpoint
from tnc.adapters.peft.checkpoint import Checkpoint
from tnc.adapters.peft.factors import Pair
from tnc.adapters.peft.layers import LINEAR, PARAMETER, Layer, wrapped_as
from tnc.adapters.peft.naming import PREFIX, ends_with, is_saved, is_target, looked_up
from tnc.adapters.peft.offsets import COMPUTED, start_of
from tnc.adapters.peft.places import joined, place_at
from tnc.adapters.peft.settings import check_known
from tnc.adapters.place import Place
from tnc.errors import ArtifactError
from tnc.nn import StructuredLayer

MAGNITUDE = "lora_magnitude_vector"
ADAPTER_KEY = re.compile(
    rf"(?P<path>.*?)\.?(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|{MAGNITUDE})"
    r"(\.weight)?"
)


@dataclass(eq=False)
class Source:
    """One adapted weight as a checkpoint has it. `path` is that of the keys, wrappers included."""

    path: str
    place: Place
    layer: Layer
    target: str
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The tensors of the two factors."""
        first, second = (name.removesuffix(".weight") for name in self.layer.suffixes)
        return self.tensors[first], self.tensors[second]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A delta ready to be put: where, by which method, and its cores and extras."""

    place: Place
    method: LoRA
    parts: Parts


def import_peft(
    model: nn.Module,
    folder: str | Path,
    name: str = "default",
    *,
    initial: str | Path | None = None,
    out_proj_times: int | None = None,
) -> Adapters:
    """Return a copy of a model, sharing its weights, with the adapter of a PEFT checkpoint.

    LoRA, rsLoRA and DoRA in any form that changes weights alone, with the modules and biases that
    were trained beside it. Where the start changed the base (PiSSA, OLoRA), what was taken from it
    is computed again and kept as frozen factors. Of other such starts (LoRA-GA, CorDA,
    `pissa_niter_N`) `initial` is the checkpoint of the adapter as it was before training. Tied
    modules with equal adapters get one, tied too.

    PEFT up to 0.21.2 adds the delta of `out_proj` of `nn.MultiheadAttention` twice: say by
    `out_proj_times` how often the one did with which the adapter was trained.

    Raises ArtifactError that names what the checkpoint has and the model has not, what is missing,
    and every setting that cannot be read. PEFT is not needed.
    """
    return import_peft_(
        shared_copy(model), folder, name, initial=initial, out_proj_times=out_proj_times
    )


def import_peft_(
    model: nn.Module,
    folder: str | Path,
    name: str = "default",
    *,
    initial: str | Path | None = None,
    out_proj_times: int | None = None,
) -> Adapters:
    """Put the adapter of a checkpoint beside a model's own weights; see `import_peft`."""
    found = checkpoint.read(folder)
    place = str(folder)
    reader = READERS.get(str(found.config["peft_type"]).upper())
    if reader is None:
        raise ArtifactError(
            f"peft_type is {found.config['peft_type']!r}; read are {', '.join(sorted(READERS))}",
            where=place,
            hint="convert it in PEFT (convert_to_lora), or merge it into its base there",
        )
    start = checkpoint.read(initial) if initial is not None else None
    reader(model, found, name, place, start, out_proj_times)
    return Adapters(model)


def read_lora(
    model: nn.Module,
    found: Checkpoint,
    name: str,
    where: str,
    initial: Checkpoint | None,
    times: int | None,
) -> None:
    """Read a checkpoint of the type LORA."""
    config = found.config
    check_known(config, where)
    start = start_of(config)
    if start and start not in COMPUTED and initial is None:
        raise ArtifactError(
            f"the start {start!r} took something from the base that the checkpoint does not hold",
            where=where,
            hint="give initial= the adapter saved before training, or save it in PEFT with "
            "path_initial_model_for_weight_conversion",
        )
    sources, rest = _sources(model, found, where)
    _check_targets(model, config, sources, where)
    before = None
    if initial is not None and start:
        before = {s.place.site.name: s for s in _sources(model, initial, where)[0]}
    loaded = [_loaded(model, source, config, start, before, times) for source in sources]
    values = _beside(model, config, sources, rest, where)
    for each in _tied(model, loaded):
        structure = each.parts.structure or each.method.structure(each.place.site)
        attach_(model, each.place, name, each.method, structure, each.parts)
    own = _stored(model)
    for key, value in values.items():
        if isinstance(own[key], nn.Parameter):
            own[key].data = value.to(own[key]).clone()
            own[key].requires_grad_(True)
        else:
            own[key].copy_(value)


Reader = Callable[[nn.Module, Checkpoint, str, str, Checkpoint | None, int | None], None]
READERS: Mapping[str, Reader] = {"LORA": read_lora}


def _sources(
    model: nn.Module, found: Checkpoint, where: str
) -> tuple[list[Source], dict[str, Tensor]]:
    """Return the adapted weights, and all other tensors by their key without the prefix."""
    sources: dict[str, Source] = {}
    rest: dict[str, Tensor] = {}
    for key, value in sorted(found.tensors.items()):
        if not key.startswith(PREFIX):
            raise ArtifactError(f"the key {key!r} does not begin with {PREFIX!r}", where=where)
        inside = key.removeprefix(PREFIX)
        parsed = ADAPTER_KEY.fullmatch(inside)
        if parsed is None:
            rest[inside] = value
            continue
        path = parsed["path"]
        if path not in sources:
            sources[path] = _source(model, path, found.config, key, where)
        sources[path].tensors[parsed["kind"]] = value
    for path, source in sources.items():
        wanted = {suffix.removesuffix(".weight") for suffix in source.layer.suffixes}
        wanted |= {MAGNITUDE} if found.config.get("use_dora") else set()
        odd = sorted(wanted ^ source.tensors.keys())
        if odd:
            told = "lacks" if odd[0] in wanted else "has an unknown"
            raise ArtifactError(f"the checkpoint {told} {odd[0]!r} of {path!r}", where=where)
    if not sources:
        raise ArtifactError("the checkpoint has no tensors of an adapter", where=where)
    return list(sources.values()), rest


def _source(model: nn.Module, path: str, config: Mapping[str, Any], key: str, where: str) -> Source:
    """Find the weight that keys of a path are for: wrappers stand in paths as `base_layer`."""
    module: Any = model
    parts: list[str] = []
    depth = 0
    for part in path.split(".") if path else ():
        child = module._modules.get(part)
        if child is None and part == "base_layer":
            depth += 1
        elif child is None:
            raise ArtifactError(
                f"the model has no module {'.'.join([*parts, part])!r}",
                where=f"{where}: {key}",
                hint="a checkpoint belongs to the model that it was made for",
            )
        else:
            module, depth = child, 0
            parts.append(part)
    own = ".".join(parts)
    if isinstance(module, nn.MultiheadAttention):
        return Source(path, place_at(model, own, "in_proj_weight"), LINEAR, own)
    parent = ".".join(parts[:-1])
    if isinstance(model.get_submodule(parent), nn.MultiheadAttention):
        return Source(path, place_at(model, own, "weight"), LINEAR, parent)
    aimed = _parameters_of(module, own, config)
    if aimed:
        if depth >= len(aimed):
            raise ArtifactError(f"{own!r} has fewer targeted parameters than wrappers", where=where)
        attribute = aimed[::-1][depth]
        return Source(path, place_at(model, own, attribute), PARAMETER, f"{own}.{attribute}")
    layer = LINEAR if isinstance(module, StructuredLayer) else wrapped_as(module)
    if layer is None or depth:
        kind = type(module).__name__
        raise ArtifactError(f"no adapter can stand beside a {kind}", where=f"{where}: {key}")
    reason = "" if isinstance(module, StructuredLayer) else layer.refuses(module)
    if reason:
        raise ArtifactError(
            f"{own!r}: {reason}, so its adapter is no change of the weight", where=where
        )
    return Source(path, place_at(model, own, "weight"), layer, own)


def _parameters_of(module: nn.Module, path: str, config: Mapping[str, Any]) -> list[str]:
    """Return the parameters of a module that `target_parameters` names, in the module's order."""
    targets = config.get("target_parameters") or ()
    return [name for name in module._parameters if ends_with(f"{path}.{name}", targets)]


def _check_targets(
    model: nn.Module, config: Mapping[str, Any], sources: list[Source], where: str
) -> None:
    """Raise where the configuration chooses other modules than the tensors are for.

    PEFT would leave such tensors out, or start such adapters anew, without an error.
    """
    targets = config.get("target_modules")
    if targets is None or targets == "all-linear":
        return
    paths = {path for path, _ in model.named_modules() if path and BANK not in path.split(".")}
    chosen = {path for path in paths if is_target(config, path)}
    held = {source.target for source in sources if source.layer is not PARAMETER}
    inside = {path for path in chosen if path.rpartition(".")[0] in held}  # out_proj of attention
    for path in sorted(held - chosen):
        raise ArtifactError(
            f"tensors for {path!r}, which target_modules does not match",
            where=where,
            hint="PEFT would ignore them",
        )
    for path in sorted(chosen - held - inside):
        raise ArtifactError(
            f"target_modules matches {path!r}, and the checkpoint has no tensors for it",
            where=where,
            hint="PEFT would start that adapter anew; is it the model of the checkpoint?",
        )


@torch.no_grad()
def _loaded(
    model: nn.Module,
    source: Source,
    config: Mapping[str, Any],
    start: str,
    before: Mapping[str, Source] | None,
    times: int | None,
) -> Loaded:
    site, module = source.place.site, model.get_submodule(source.place.owners[0].path)
    pair = source.layer.read(module, site, *source.pair)
    rank, alpha, scale = _scale(source, config)
    doubled = _times(model, source, times, pair)
    kind = DoRA if config.get("use_dora") else LoRA
    share = pair.rank / rank  # of a convolution in groups the rank is another
    own = alpha * doubled * (share**0.5 if config.get("use_rslora") else share)
    method = kind(
        rank=pair.rank,
        alpha=own,
        stabilised=bool(config.get("use_rslora")),
        dropout=float(config.get("lora_dropout") or 0.0),
    )
    extras = {}
    if kind is DoRA:
        reason = method.refuses(site)
        if reason:
            raise ArtifactError(f"DoRA of {site.name}: {reason}", where=site.name)
        extras["magnitude"] = source.tensors[MAGNITUDE].flatten()
    shapes = method.structure(site).shapes
    _check_shape(site.name, pair, shapes)
    cores = {"B": pair.left.reshape(shapes["B"]), "A": pair.right.reshape(shapes["A"])}
    if not start:
        return Loaded(source.place, method, Parts(cores, extras))
    taken = _taken(model, source, start, before, rank, scale)
    cores |= {"B0": -taken.left.reshape(shapes["B"]), "A0": taken.right.reshape(shapes["A"])}
    structure = with_start(site.signature, pair.rank)
    return Loaded(source.place, method, Parts(cores, extras, structure=structure))


def _scale(source: Source, config: Mapping[str, Any]) -> tuple[int, float, float]:
    """Return rank, alpha and scale; the rank that the configuration gives must be the tensors'."""
    rank = looked_up(config.get("rank_pattern") or {}, source.target, config["r"])
    alpha = looked_up(config.get("alpha_pattern") or {}, source.target, config["lora_alpha"])
    first = source.pair[0]
    stacked = source.place.site.signature.outputs[:-1]
    held = first.shape[0] // (stacked[0] if stacked else 1)
    if held != rank:
        raise ArtifactError(
            f"{source.target} has rank {held}, the configuration says {rank}",
            where=source.place.site.name,
        )
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    return int(rank), float(alpha), float(scale)


def _times(model: nn.Module, source: Source, times: int | None, pair: Pair) -> int:
    path = source.place.owners[0].path
    parent = model.get_submodule(path.rpartition(".")[0])
    if not isinstance(parent, nn.MultiheadAttention) or not bool(pair.left.any()):
        return 1
    if times is None:
        raise ArtifactError(
            f"the PEFT that trained {path!r} may have added its delta twice",
            where=path,
            hint="say out_proj_times=2 for PEFT up to 0.21.2, 1 for one that adds it once",
        )
    return times


def _check_shape(name: str, pair: Pair, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for tensor, core in ((pair.left, "B"), (pair.right, "A")):
        size = 1
        for axis in shapes[core]:
            size *= axis
        if tensor.numel() != size:
            raise ArtifactError(
                f"the factors of {name} do not fit its weight: {tuple(pair.left.shape)} and "
                f"{tuple(pair.right.shape)}",
                where=name,
                hint="a checkpoint belongs to the model that it was made for",
            )


def _taken(
    model: nn.Module,
    source: Source,
    start: str,
    before: Mapping[str, Source] | None,
    rank: int,
    scale: float,
) -> Pair:
    """Return the pair that was taken from the base, times the scale."""
    site = source.place.site
    module = model.get_submodule(source.place.owners[0].path)
    if before is not None:
        if site.name not in before:
            raise ArtifactError(f"the initial adapter has none for {site.name}", where=site.name)
        return source.layer.read(module, site, *before[site.name].pair)
    if source.layer is not LINEAR or (start == "olora" and site.transposed):
        raise ArtifactError(f"the start {start!r} is for plain linear layers", where=site.name)
    return COMPUTED[start](wide(source.place.mapped(model)), rank, scale)


def _tied(model: nn.Module, loaded: list[Loaded]) -> list[Loaded]:
    """Join equal adapters of modules that share one weight: they were one before."""
    groups: dict[int, list[Loaded]] = {}
    for each in loaded:
        owner = each.place.owners[0]
        held: Any = model.get_submodule(owner.path)._parameters.get(owner.attribute)
        key = id(each) if held is None else id(held)
        groups.setdefault(key, []).append(each)
    found = []
    for several in groups.values():
        first = several[0]
        if all(_equal(first, other) for other in several[1:]):
            place = joined([each.place for each in several]) if len(several) > 1 else first.place
            found.append(Loaded(place, first.method, first.parts))
        else:
            found += several
    return found


def _equal(one: Loaded, other: Loaded) -> bool:
    same = one.method == other.method and one.parts.cores.keys() == other.parts.cores.keys()
    return same and all(
        value.shape == other.parts.cores[name].shape and torch.equal(value, other.parts.cores[name])
        for name, value in one.parts.cores.items()
    )


def _beside(
    model: nn.Module,
    config: Mapping[str, Any],
    sources: list[Source],
    rest: Mapping[str, Tensor],
    where: str,
) -> dict[str, Tensor]:
    """Return the values of parameters that were trained beside the adapter, by name.

    Raises ArtifactError for a tensor without a use and for a saved module without its tensors.
    """
    saved = config.get("modules_to_save") or ()
    held = _stored(model)
    wrapped = {source.path: source.place.owners[0].path for source in sources}
    found = {}
    for key, value in rest.items():
        owner, _, last = key.rpartition(".")
        name = key
        if owner.endswith(".base_layer") and owner.removesuffix(".base_layer") in wrapped:
            name = f"{wrapped[owner.removesuffix('.base_layer')]}.{last}"
        own = held.get(name)
        if own is None or own.shape != value.shape:
            told = "no such parameter" if own is None else f"one of shape {tuple(own.shape)}"
            raise ArtifactError(
                f"the checkpoint has {name!r} of shape {tuple(value.shape)}, the model {told}",
                where=where,
                hint="a base whose vocabulary was resized must be resized first",
            )
        whole = any(is_saved(path, saved) for path in _paths(owner))
        if whole or ("bias" in last and config.get("bias", "none") != "none"):
            found[name] = value
        elif not torch.equal(own.detach().to(value), value):
            raise ArtifactError(
                f"the checkpoint has another {name!r} than the model, and says nothing of it",
                where=where,
                hint="copy it into the base model if it belongs there",
            )
    for path, module in model.named_modules():
        if path and is_saved(path, saved) and BANK not in path.split("."):
            for name in module.state_dict():
                if f"{path}.{name}" not in found:
                    raise ArtifactError(
                        f"modules_to_save names {path!r}, and the checkpoint lacks its {name!r}",
                        where=where,
                    )
    return found


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by all of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _paths(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
