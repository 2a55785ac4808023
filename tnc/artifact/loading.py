"""Load an artifact: skeleton, replaced modules, tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tnc.artifact.manifest import Manifest, check_files, read_tensors
from tnc.artifact.modules import lay_out_, rebuild_modules_
from tnc.errors import ArtifactError, TncError


def load(folder: str | Path, model: nn.Module | None = None, *, check: bool = False) -> nn.Module:
    """Return the compiled model of an artifact, in the mode it was saved in.

    `model` is a model of the original's class with any weights, needed where the artifact does not
    say how to build one; a copy of it is rewritten, on its device, and it stays as it is. Weights
    have the dtype that was stored, whatever the model's. With `check`, the SHA-256 of every file
    with tensors is compared first. Raises ArtifactError with what is wrong.
    """
    path = Path(folder)
    manifest = Manifest.read(path)
    if check:
        check_files(path, manifest)
    skeleton = copy.deepcopy(model) if model is not None else _skeleton(path, manifest)
    tensors = dict(read_tensors(path, manifest))
    for group in manifest.tied:
        for name in group[1:]:
            tensors[name] = tensors[group[0]]
    rebuild_modules_(skeleton, manifest.modules, tensors)
    _assign_(skeleton, tensors, path)
    tie_(skeleton, manifest.tied)
    lay_out_(skeleton, manifest.modules)
    frozen = set(manifest.frozen)
    for name, parameter in skeleton.named_parameters():
        parameter.requires_grad_(name not in frozen)
    skeleton.train(manifest.training)
    for name in manifest.modes:
        skeleton.get_submodule(name).training = not manifest.training
    guard_saving_(skeleton)
    return skeleton


def guard_saving_(model: nn.Module, guarded: bool = True) -> None:
    """Let `save_pretrained` of a transformers model refuse, or no longer; see `TncQuantizer`."""
    if not (hasattr(model, "save_pretrained") and hasattr(model, "config")):
        return
    from tnc.artifact.quantizer import TncConfig, TncQuantizer

    if guarded:
        model.hf_quantizer = TncQuantizer(TncConfig())  # type: ignore[assignment]
    elif isinstance(getattr(model, "hf_quantizer", None), TncQuantizer):
        TncQuantizer(TncConfig()).remove_quantization_config(model)  # type: ignore[no-untyped-call]


def _skeleton(path: Path, manifest: Manifest) -> nn.Module:
    if manifest.source is None:
        raise ArtifactError(
            "the artifact does not say how to build its model",
            where=str(path),
            hint="give a model of the original's class in Python: "
            "tnc.load(folder, model=MyModel()), and likewise tnc.verify and tnc.export",
        )
    from tnc.decide.options import build
    from tnc.sources import models

    try:
        return build(models, dict(manifest.source)).skeleton(path)
    except TncError as error:
        error.where = f"{error.where}, source of {path}" if error.where else f"source of {path}"
        error.hint = error.hint or "tnc.load(folder, model=MyModel()) takes a model instead"
        raise


def _assign_(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or unknown:
        names = [f"{n} is not in the artifact" for n in missing[:2]]
        names += [f"{n} is not in the model" for n in unknown[:2]]
        raise ArtifactError(
            "model and artifact do not fit: " + "; ".join(names),
            where=str(path),
            hint="give the model that the artifact was compiled from",
        )
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise ArtifactError(
                f"{name} has shape {tuple(own[name].shape)} in the model and "
                f"{tuple(tensor.shape)} in the artifact",
                where=str(path),
            )
        if own[name].is_meta:
            _put_(model, name, tensor)
        else:
            own[name].data = tensor.to(own[name].device)


def _put_(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Give an entry that has no memory its tensor."""
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    if attribute in module._parameters:
        module._parameters[attribute] = nn.Parameter(tensor, tensor.is_floating_point())
    else:
        module._buffers[attribute] = tensor


def tie_(model: nn.Module, groups: tuple[tuple[str, ...], ...]) -> None:
    """Let the names of each group be one parameter again."""
    for group in groups:
        owner, _, attribute = group[0].rpartition(".")
        first = model.get_submodule(owner)._parameters.get(attribute)
        if first is None:
            continue  # a shared buffer, or a module that is itself shared
        for name in group[1:]:
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            if attribute in module._parameters:
                module._parameters[attribute] = first
