"""Reading checkpoints of the type LORA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.equations import with_start
from tnc.adapters.low_rank import LowRank
from tnc.adapters.methods.dora import DoRA
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.peft.checkpoint import Checkpoint
from tnc.adapters.peft.layers import LINEAR, PARAMETER, Layer, wrapped_as
from tnc.adapters.peft.naming import PREFIX, ends_with, looked_up
from tnc.adapters.peft.offsets import COMPUTED, start_of
from tnc.adapters.peft.places import place_at
from tnc.adapters.peft.read import Loaded, Read
from tnc.adapters.peft.settings import check_known
from tnc.adapters.place import Place
from tnc.adapters.start import Parts, wide
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


def read_lora(
    model: nn.Module,
    found: Checkpoint,
    where: str,
    initial: Checkpoint | None,
    times: int | None,
) -> Read:
    """Read a checkpoint of the type LORA."""
    config = found.config
    check_known(config, where)
    start = start_of(config)
    if start and start not in COMPUTED and initial is None:
        raise ArtifactError(
            f"the start {start!r} took something from the base that the checkpoint does not hold",
            where=where,
            hint="give initial= (--initial) the adapter saved before training, or save it in PEFT "
            "with path_initial_model_for_weight_conversion",
        )
    sources, rest = _sources(model, found, where)
    before = None
    if initial is not None and start:
        before = {s.place.site.name: s for s in _sources(model, initial, where)[0]}
    loaded = [_loaded(model, source, config, start, before, times) for source in sources]
    paths = {source.path: source.place.owners[0].path for source in sources}
    targets = frozenset(s.target for s in sources if s.layer is not PARAMETER)
    return Read(loaded, rest, paths, targets)


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


def _times(model: nn.Module, source: Source, times: int | None, pair: LowRank) -> int:
    path = source.place.owners[0].path
    parent = model.get_submodule(path.rpartition(".")[0])
    if not isinstance(parent, nn.MultiheadAttention) or not bool(pair.left.any()):
        return 1
    if times is None:
        raise ArtifactError(
            f"the PEFT that trained {path!r} may have added its delta twice",
            where=path,
            hint="say out_proj_times=2 (--out-proj-times 2) for PEFT up to 0.21.2, 1 for one that "
            "adds it once",
        )
    return times


def _check_shape(name: str, pair: LowRank, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for tensor, core in ((pair.left, "B"), (pair.right, "A")):
        if tensor.numel() != prod(shapes[core]):
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
) -> LowRank:
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
