"""The two files of a PEFT checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tnc.artifact.foreign import PEFT
from tnc.errors import ArtifactError
from tnc.files import check_no_home, replaced_folder, writing

CONFIG = PEFT
TENSORS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A configuration and tensors by key; `metadata` is what the tensors' file says beside them."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder holds an adapter in PEFT's format."""
    return (folder / CONFIG).is_file()


def check_free(folder: Path, force: bool) -> None:
    """Raise ArtifactError where a folder is in the way of a checkpoint."""
    check_no_home(folder, ArtifactError)
    held = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    whole = (folder / CONFIG).is_file()
    if held and not (force and whole):
        raise ArtifactError(
            f"{folder} already holds an adapter" if whole else f"{folder} holds no adapter",
            hint="choose another place" + (", or replace it: --force, force=True" if whole else ""),
        )


def write(checkpoint: Checkpoint, folder: Path, *, force: bool = False) -> None:
    """Write a checkpoint; the folder is whole or not there. Raises ArtifactError."""
    check_free(folder, force)
    with writing(folder, ArtifactError), replaced_folder(folder) as place:
        metadata = {"format": "pt", **checkpoint.metadata}
        save_file(dict(checkpoint.tensors), place / TENSORS, metadata)
        text = json.dumps(dict(checkpoint.config), indent=2, sort_keys=True)
        (place / CONFIG).write_text(text + "\n")


def read(folder: str | Path) -> Checkpoint:
    """Read a checkpoint. Raises ArtifactError where it is not whole."""
    place = Path(folder)
    try:
        config = json.loads((place / CONFIG).read_text())
        if (place / TENSORS).exists():
            tensors = load_file(place / TENSORS)
            with safe_open(place / TENSORS, "pt") as file:
                metadata = dict(file.metadata() or {})
        else:
            tensors = torch.load(place / PICKLED, map_location="cpu", weights_only=True)
            metadata = {}
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"no PEFT checkpoint can be read: {error}",
            where=str(place),
            hint=f"a folder with {CONFIG} and {TENSORS}",
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ArtifactError(f"{CONFIG} names no peft_type", where=str(place))
    return Checkpoint(config, tensors, metadata)
