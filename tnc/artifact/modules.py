"""Describe the modules that a compiled model has and its source has not, and put them in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import ArtifactError
from tnc.net import from_json
from tnc.nn import StructuredLayer, install_rebuilt_, view_from_json
from tnc.nn.channels_last import (
    has_entrance,
    is_laid_out,
    lay_out_weights_,
    make_entrance_,
)
from tnc.nn.layer import POSITIONS
from tnc.nn.rebuilt import SUFFIX, rebuilt_names
from tnc.nn.shared_input import groups_of, share_inputs_


def classes_of(model: nn.Module) -> dict[str, str]:
    """Return the class of every module by path: what `describe_modules` compares with."""
    return {
        path: classes_of_one(module) for path, module in model.named_modules(remove_duplicate=False)
    }


def describe_modules(model: nn.Module, classes: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """List what differs from the source's module tree. Raises ArtifactError for unknown modules.

    Entries are `structured` (a layer, or a parameter that is rebuilt), `identity`, `linear`,
    `bias` (a bias that the source has not), `removed`, and `shared-input` (layers below a module
    that compute the product of their front cores once); and `channels-last` (the memory format of
    convolution weights, and whether images get it at the model's `entrance`).
    """
    found: list[dict[str, Any]] = []
    now = dict(model.named_modules(remove_duplicate=False))
    for path, module in now.items():
        for name in rebuilt_names(module):
            layer = module._modules[name + SUFFIX]
            assert isinstance(layer, StructuredLayer)
            found.append({"kind": "rebuilt", "path": path, "name": name, **_layer(layer)})
        if isinstance(module, StructuredLayer):
            if not path.endswith(SUFFIX):
                found.append({"kind": "structured", "path": path, **_layer(module)})
        elif _inside(path, now):
            continue
        elif path not in classes or classes[path] != classes_of_one(module):
            found.append(_plain(path, module))
        elif getattr(module, "bias", None) is not None and isinstance(module, _BIASED):
            found.append({"kind": "bias", "path": path})
    removed = sorted(set(classes) - set(now))
    replaced = {entry["path"] for entry in found if entry["kind"] in ("structured", "identity")}
    found += [
        {"kind": "removed", "path": path}
        for path in removed
        if path.rpartition(".")[0] not in removed
        and not any(path.startswith(f"{other}.") for other in replaced)
    ]
    found += [
        {"kind": "shared-input", "path": path, "layers": list(layers), "front": list(front)}
        for path, module in model.named_modules()
        for layers, front in groups_of(module)
    ]
    if has_entrance(model) or is_laid_out(model):
        found.append({"kind": "channels-last", "path": "", "entrance": has_entrance(model)})
    return tuple(found)


def classes_of_one(module: nn.Module) -> str:
    """Return a module's class as `classes_of` writes it."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def rebuild_modules_(
    model: nn.Module, entries: tuple[Mapping[str, Any], ...], tensors: Mapping[str, Tensor]
) -> None:
    """Put described modules into a skeleton, with the tensors of their cores."""
    shared: dict[str, StructuredLayer] = {}
    for entry in entries:
        path = entry.get("path", "")
        try:
            _put(model, entry, path, tensors, shared)
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"the manifest does not describe module {path!r} rightly: {error!r}",
                hint="copy the artifact again, or compile again",
            ) from error
        except AttributeError as error:
            raise ArtifactError(
                f"the model has no module {path!r}, which the artifact rewrites",
                hint="give the model that the artifact was compiled from",
            ) from error


def lay_out_(model: nn.Module, entries: tuple[Mapping[str, Any], ...]) -> None:
    """Bring tensors into the memory format that entries tell, which files do not keep."""
    if any(entry["kind"] == "channels-last" for entry in entries):
        lay_out_weights_(model)


def _put(
    model: nn.Module,
    entry: Mapping[str, Any],
    path: str,
    tensors: Mapping[str, Tensor],
    shared: dict[str, StructuredLayer],
) -> None:
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    module = model.get_submodule(path)
    kind = entry["kind"]
    if kind == "structured":
        setattr(parent, name, _build(entry, path, tensors))
    elif kind == "rebuilt":
        layer = _build(entry, f"{path}.{entry['name']}{SUFFIX}".lstrip("."), tensors)
        install_rebuilt_(module, entry["name"], layer)
    elif kind == "identity":
        setattr(parent, name, nn.Identity())
    elif kind == "linear":
        setattr(parent, name, nn.Linear(entry["inputs"], entry["outputs"], entry["bias"]))
    elif kind == "bias":
        if module.bias is None:
            module.bias = nn.Parameter(torch.zeros_like(tensors[f"{path}.bias"]))
    elif kind == "removed":
        delattr(parent, name)
    elif kind == "shared-input":
        share_inputs_(module, entry["layers"], entry["front"])
    elif kind == "channels-last":
        if entry["entrance"]:
            make_entrance_(module)
    else:
        raise ArtifactError(f"unknown kind of module {kind!r}", where=path)


_BIASED = (nn.modules.conv._ConvNd, nn.Linear)


def _layer(layer: StructuredLayer) -> dict[str, Any]:
    return {**layer.describe(), "bias": layer.bias is not None, "training": layer.training}


def _build(entry: Mapping[str, Any], path: str, tensors: Mapping[str, Tensor]) -> StructuredLayer:
    structure = from_json(entry["structure"])
    cores = {name: tensors[f"{path}.cores.{name}"] for name in structure.shapes}
    bias = tensors[f"{path}.bias"] if entry["bias"] else None
    positions = {name: tensors[f"{path}.{POSITIONS}{name}"] for name in structure.stored}
    layer = StructuredLayer(structure, view_from_json(entry["view"]), cores, bias, positions)
    return layer.train(entry["training"])


def _inside(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a path lies inside of a structured layer."""
    parts = path.split(".")
    return any(
        isinstance(modules.get(".".join(parts[:k])), StructuredLayer) for k in range(1, len(parts))
    )


def _plain(path: str, module: nn.Module) -> dict[str, Any]:
    if type(module) is nn.Identity:
        return {"kind": "identity", "path": path}
    if type(module) is nn.Linear:
        return {
            "kind": "linear",
            "path": path,
            "inputs": module.in_features,
            "outputs": module.out_features,
            "bias": module.bias is not None,
        }
    raise ArtifactError(
        f"{path} became a {type(module).__name__}, which an artifact cannot describe",
        hint="save the state dict yourself, or drop the pass that put it there",
    )
