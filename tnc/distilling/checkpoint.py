"""Checkpoints of a distillation: tensors in safetensors, the rest in JSON, replaced in one step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tnc.errors import ArtifactError
from tnc.files import recover_folder, replaced_folder, writing

TENSORS, STATE = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Position:
    """Where a run is: steps done, the epoch and the batches of it that are used up, seconds."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    loss: float = float("nan")


def identity(settings: Mapping[str, Any], *models: nn.Module) -> str:
    """Return a digest of a run: its settings, and names, shapes and values of its models."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for model in models:
        for name, tensor in sorted(model.state_dict().items()):
            if isinstance(tensor, Tensor):
                found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                found.update(data.numpy().tobytes())
    return found.hexdigest()


def write(folder: Path, run: str, position: Position, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint; an interruption leaves the old one or none. Raises ArtifactError."""
    plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    with writing(folder, ArtifactError), replaced_folder(folder) as fresh:
        save_file(plain, fresh / TENSORS)
        state = {"version": 1, "run": run, **asdict(position)}
        (fresh / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def read(folder: Path, run: str) -> tuple[Position, dict[str, Tensor]] | None:
    """Read a checkpoint; None where there is none.

    Raises ArtifactError for one that is damaged or of another run.
    """
    recover_folder(folder.resolve())
    if not folder.exists():
        return None
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
        version, other = state.pop("version"), state.pop("run")
        position = Position(**state)
    except Exception as error:
        raise ArtifactError(
            f"cannot read the checkpoint of the distillation: {error}",
            where=str(folder),
            hint="remove the folder to start again",
        ) from error
    if version != 1 or other != run:
        raise ArtifactError(
            "the checkpoint is of another run: its models, data order or settings differ",
            where=str(folder),
            hint="give another checkpoint folder, or remove this one to start again",
        )
    return position, tensors
