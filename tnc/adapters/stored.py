"""Adapters in a folder: its manifest, its tensors, and which weight of a model each is for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tnc.adapters.place import Owner, Place, site_from_json
from tnc.artifact.foreign import ADAPTERS
from tnc.errors import ArtifactError
from tnc.nn import StructuredLayer, view_from_json

MANIFEST = ADAPTERS
TENSORS = "adapter.safetensors"
PROBE = "probe.safetensors"
FORMAT = 1
BUFFERS = "buffers/"


def read_stored(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the manifest and the tensors of a folder of adapters. Raises ArtifactError.

    Values must be finite but for the base's buffers, such as masks.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"no adapters can be read: {error}", where=str(folder), hint="was it saved by tnc?"
        ) from error
    if manifest.get("format") != FORMAT:
        raise ArtifactError(
            f"adapters of format {manifest.get('format')}, this reads {FORMAT}", where=str(folder)
        )
    for name, tensor in tensors.items():
        if not name.startswith(BUFFERS) and not bool(tensor.isfinite().all()):
            raise ArtifactError(
                f"{name} has entries that are not finite",
                where=str(folder),
                hint="the training that made it diverged: save it anew",
            )
    return manifest, tensors


def place_in(model: nn.Module, data: Mapping[str, Any], folder: Path) -> Place:
    """Return the place that a stored delta is for. Raises ArtifactError where a model has none."""
    site = site_from_json(data["site"])
    owners = tuple(Owner(**owner) for owner in data["owners"])
    place = Place(site, owners, tuple(view_from_json(view) for view in data["views"]))
    try:
        for owner in owners:
            _check_base(model.get_submodule(owner.path), owner, site.name, folder)
        found = tuple(place.mapped(model).shape)
    except (AttributeError, KeyError) as error:
        raise ArtifactError(
            f"the model has no weight {site.name!r}",
            where=str(folder),
            hint="adapters belong to the model that they were made for",
        ) from error
    if found != site.signature.shape:
        raise ArtifactError(
            f"{site.name} has shape {found}, the adapter is for {site.signature.shape}",
            where=str(folder),
        )
    return place


def _check_base(module: nn.Module, owner: Owner, name: str, folder: Path) -> None:
    """Raise ArtifactError where one of both is made of cores: adapter's base, and the module."""
    was, now = owner.kind == "structured", isinstance(module, StructuredLayer)
    if was != now:
        told = ("dense", "made of cores")
        raise ArtifactError(
            f"{name} is {told[now]} in this model, it was {told[was]} when its adapter was saved",
            where=str(folder),
            hint="adapters belong to the model that they were made for: adapt this one, or load "
            "them beside that and compile what `unload` returns",
        )
