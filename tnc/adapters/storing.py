"""Save adapters apart from the model, and put them beside a model's weights again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tnc
from tnc.adapters.adapters import Adapters, of
from tnc.adapters.attach import Pool, attach_, shared_copy
from tnc.adapters.attach import check_free as check_free_place
from tnc.adapters.bank import bank_of
from tnc.adapters.delta import Delta
from tnc.adapters.method import methods
from tnc.adapters.place import place_of, site_to_json
from tnc.adapters.start import Parts
from tnc.adapters.stored import (
    BUFFERS,
    FORMAT,
    MANIFEST,
    PROBE,
    TENSORS,
    place_in,
    read_stored,
)
from tnc.artifact.probing import Probe, probe_data, probe_inputs
from tnc.capture.model import Holder, model_of
from tnc.decide.options import as_mapping, build
from tnc.errors import ArtifactError
from tnc.files import check_no_home, replaced_folder, writing
from tnc.net import from_json, to_json

SPEC = "spec.yaml"


def save(
    adapters: Adapters | nn.Module,
    out: str | Path,
    names: Sequence[str] = (),
    *,
    probe: Probe | None = None,
    spec: str = "",
    report: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write adapters (all of them, or those named) and what is trained beside them to a folder.

    `adapters` are what `tnc.adapt` returned, or its model. The base model is not written: its
    weights' names and shapes are, and whether they are made of cores; they are checked when the
    adapters are loaded. Its buffers are written, since training changes them (batch norms). `probe`
    is one input, (args, kwargs), that merging is checked with; `spec` and `report` are kept to be
    read. The folder is complete or not there; an old one is replaced with `force`. Raises
    ArtifactError.
    """
    adapters, folder = of(adapters), Path(out)
    if not adapters.names:
        raise ArtifactError(
            "the model has no adapters to save",
            where="adapters",
            hint="tnc.adapt attaches some; tnc.save writes compiled models",
        )
    check_free(folder, force)
    tensors: dict[str, Tensor] = {}
    held: dict[str, dict[str, Any]] = {}
    for name in names or adapters.names:
        held[name] = {"weight": adapters.active.get(name, float(name in names)), "deltas": []}
        for path, delta in adapters.deltas(name).items():
            key = f"{name}/{path}"
            held[name]["deltas"].append(_described(adapters.model, name, delta) | {"key": key})
            tensors |= {f"{key}/{part}": v for part, v in _tensors(delta).items()}
    shared, tensors = _gathered(tensors)
    outside = outside_of(adapters.model)
    beside = [(name, p) for name, p in outside.items() if getattr(p, "requires_grad", False)]
    tensors |= {f"beside/{name}": p.detach() for name, p in beside}
    buffers = {k: v for k, v in outside.items() if not isinstance(v, nn.Parameter)}
    tensors |= {f"{BUFFERS}{name}": value.detach() for name, value in buffers.items()}
    manifest = {
        "format": FORMAT,
        "tnc": tnc.__version__,
        "adapters": held,
        "shared": shared,
        "beside": [name for name, _ in beside],
        "buffers": list(buffers),
    }
    form, inputs = probe_data(probe, ()) if probe is not None else (None, {})
    manifest |= {"probe": form, "report": dict(report or {})}
    with writing(folder, ArtifactError), replaced_folder(folder) as place:
        if inputs:
            save_file(inputs, place / PROBE)
        if spec:
            (place / SPEC).write_text(spec, encoding="utf-8")
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, place / TENSORS)
        (place / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return folder


def check_free(folder: Path, force: bool) -> None:
    """Raise ArtifactError where a folder is in the way of adapters."""
    check_no_home(folder, ArtifactError)
    held = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    whole = (folder / MANIFEST).is_file()
    if held and not (force and whole):
        raise ArtifactError(
            f"{folder} already holds adapters" if whole else f"{folder} exists and is no adapter's",
            hint="choose another place" + (", or replace it: --force, force=True" if whole else ""),
        )


def read_probe(folder: str | Path) -> Probe | None:
    """Return the input that was kept with adapters, as (args, kwargs)."""
    place = Path(folder)
    manifest, _ = read_stored(place)
    form = manifest.get("probe")
    if form is None:
        return None
    held = load_file(place / PROBE) if (place / PROBE).is_file() else {}
    return probe_inputs(form, held)


def load(model: nn.Module | Holder, folder: str | Path) -> Adapters:
    """Return a copy of a model, sharing its weights, with the adapters of a folder.

    Raises ArtifactError where the folder is not whole or the model is another one.
    """
    return load_(shared_copy(model_of(model)), folder)


def load_(model: nn.Module | Holder, folder: str | Path) -> Adapters:
    """Put the adapters of a folder beside a model's own weights; see `load`.

    What was trained beside them comes along. Raises ArtifactError where the model has adapters with
    such a parameter of another value.
    """
    model, place = model_of(model), Path(folder)
    manifest, tensors = read_stored(place)
    Adapters(model).check_unmerged()
    wanted = []
    for name, told in manifest["adapters"].items():
        for data in told["deltas"]:
            wanted.append((name, told["weight"], data, place_in(model, data, place)))
            check_free_place(model, wanted[-1][3], name)
    own = dict(outside_of(model))
    kept = [("beside", name) for name in manifest.get("beside", ())]
    kept += [("buffers", name) for name in manifest.get("buffers", ())]
    for kind, name in kept:
        if name not in own:
            raise ArtifactError(f"the model has no tensor {name!r}", where=str(place))
        here, there = tuple(own[name].shape), tuple(tensors[f"{kind}/{name}"].shape)
        if here != there:
            raise ArtifactError(
                f"{name} has shape {here}, the one that was trained beside adapters {there}",
                where=str(place),
                hint="adapters belong to the model that they were made for",
            )
    trained = {name: tensors[f"beside/{name}"] for name in manifest.get("beside", ())}
    check_beside(model, trained, str(place))
    pool = Pool()
    for name, weight, data, where in wanted:
        key = f"{data['key']}/"
        parts: dict[str, Any] = {kind: {} for kind in ("cores", "extras", "constants", "positions")}
        for path, value in tensors.items():
            if path.startswith(key):
                kind, part = path.removeprefix(key).split("/")
                parts[kind][part] = value
        common = [path for path in manifest.get("shared", {}) if path.startswith(f"{key}cores/")]
        for path in common:
            told = manifest["shared"][path]
            view = tensors[told["memory"]].as_strided(told["shape"], told["stride"], told["offset"])
            parts["cores"][path.rpartition("/")[2]] = view
        names = tuple(path.rpartition("/")[2] for path in common)
        method = build(methods, data["method"])
        structure = from_json(data["structure"])
        given = Parts(**parts, shared=names)
        delta = attach_(model, where, name, method, structure, given, pool=pool)
        delta.factor = float(data["factor"])
        for owner in where.owners:
            bank = bank_of(model.get_submodule(owner.path))
            assert bank is not None
            bank.switch(name, weight or None)
    for kind, name in kept:
        own[name].data = tensors[f"{kind}/{name}"].to(own[name])
        own[name].requires_grad_(kind == "beside")
    return Adapters(model)


def check_beside(model: nn.Module, values: Mapping[str, Tensor], where: str) -> None:
    """Raise ArtifactError where values would replace what is trained beside other adapters."""
    if not Adapters(model).names:
        return
    own = dict(model.named_parameters(remove_duplicate=False))
    for name, value in values.items():
        held = own.get(name)
        if held is not None and held.requires_grad and not torch.equal(held, value.to(held)):
            raise ArtifactError(
                f"{name} is trained beside the adapters that are there, and another one was trained"
                " beside those that are loaded",
                where=where,
                hint="load them into a copy of the base of their own: adapters of one model share "
                "what is trained beside them",
            )


def outside_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and saved buffers by name, without those of its adapters."""
    inside = {
        id(tensor)
        for module in model.modules()
        if (bank := bank_of(module)) is not None
        for tensor in (*bank.parameters(), *bank.buffers())
    }
    found = model.state_dict(keep_vars=True)
    return {k: v for k, v in found.items() if isinstance(v, Tensor) and id(v) not in inside}


def _gathered(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the cores that share memory, as places in it, and what is to be written, each once."""
    users: dict[int, list[str]] = {}
    for key, value in tensors.items():
        if "/cores/" not in key or not value.numel():
            continue
        users.setdefault(value.untyped_storage().data_ptr(), []).append(key)
    places: dict[str, Any] = {}
    written = dict(tensors)
    for number, keys in enumerate(keys for keys in users.values() if len(keys) > 1):
        first = tensors[keys[0]]
        size = first.untyped_storage().nbytes() // first.itemsize
        name = f"shared/{number}"
        written[name] = first.as_strided((size,), (1,), 0)
        for key in keys:
            value = written.pop(key)
            places[key] = {
                "memory": name,
                "shape": list(value.shape),
                "stride": list(value.stride()),
                "offset": value.storage_offset(),
            }
    return places, written


def _tensors(delta: Delta) -> dict[str, Tensor]:
    return {
        **{f"cores/{name}": core.detach() for name, core in delta.cores.items()},
        **{f"positions/{name}": places for name, places in delta.layer.positions.items()},
        **{f"extras/{name}": value.detach() for name, value in delta.extras.items()},
        **{f"constants/{name}": delta.constant(name) for name in delta.constants},
    }


def _described(model: nn.Module, adapter: str, delta: Delta) -> dict[str, Any]:
    place = place_of(model, adapter, delta.site.name)
    return {
        "method": as_mapping(methods, delta.method),
        "factor": delta.factor,
        "structure": to_json(delta.layer.structure),
        "site": site_to_json(delta.site),
        "owners": [asdict(owner) for owner in place.owners],
        "views": [view.as_json() for view in place.views],
    }
