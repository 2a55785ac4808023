"""What is trained beside adapters: heads and biases, as `modules_to_save` and `bias`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.bank import BANK
from tnc.adapters.peft.naming import PREFIX, is_saved
from tnc.adapters.peft.read import Read
from tnc.errors import ArtifactError


@dataclass(frozen=True, eq=False)
class Beside:
    """Entries of the configuration, tensors by key, and what the reader should know."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def beside(model: nn.Module, adapted: Collection[str]) -> Beside:
    """Return the form of all that is trained beside the adapters of a model.

    Biases of adapted modules are PEFT's `bias = "lora_only"`; any other parameter is saved with
    the whole module that holds it. PEFT chooses such modules by the bare end of their path: others
    that end so are written too, with the values that they have. Raises ArtifactError.
    """
    trained = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and BANK not in name.split(".")
    ]
    biases = [n for n in trained if _owner(n) in adapted and n.endswith(".bias")]
    owners = sorted({_owner(name) for name in trained if name not in biases})
    config: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    if biases:
        config["bias"] = "lora_only"
        for path in sorted(adapted):
            own = model.get_submodule(path)._parameters.get("bias")
            if own is not None:
                tensors[f"{PREFIX}{path}.base_layer.bias"] = own.detach()
    for path in owners:
        _check(model, path, adapted)
    if owners:
        config["modules_to_save"] = owners
    notes = []
    for path, module in model.named_modules():
        if not is_saved(path, owners) or BANK in path.split("."):
            continue
        if path not in owners:
            notes.append(f"{path} is written whole: PEFT saves what ends like {owners[0]!r}")
        _check(model, path, adapted)
        for key, value in module.state_dict().items():
            tensors[f"{PREFIX}{path}.{key}"] = value.detach()
    return Beside(config, tensors, tuple(notes))


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _check(model: nn.Module, path: str, adapted: Collection[str]) -> None:
    reason = ""
    if not path:
        reason = "PEFT saves whole modules, not parameters of the model itself"
    inside = [other for other in adapted if other == path or other.startswith(f"{path}.")]
    if inside:
        reason = f"PEFT saves the module {path!r} whole, and {inside[0]!r} in it has an adapter"
    if reason:
        raise ArtifactError(
            f"what is trained beside the adapters has no form: {reason}", where=path
        )


def read_beside(
    model: nn.Module,
    config: Mapping[str, Any],
    read: Read,
    where: str,
) -> dict[str, Tensor]:
    """Return the values of parameters that were trained beside the adapter, by name.

    Raises ArtifactError for a tensor without a use and for a saved module without its tensors.
    """
    saved = config.get("modules_to_save") or ()
    held = _stored(model)
    found = {}
    for key, value in read.rest.items():
        owner, _, last = key.rpartition(".")
        name = key
        if owner.endswith(".base_layer") and owner.removesuffix(".base_layer") in read.paths:
            name = f"{read.paths[owner.removesuffix('.base_layer')]}.{last}"
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


def put_(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the values that were read; parameters are trained from now on."""
    own = _stored(model)
    for key, value in values.items():
        held = own[key]
        if isinstance(held, nn.Parameter):
            held.data = value.to(held).clone()
            held.requires_grad_(True)
        else:
            held.copy_(value)


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by all of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _paths(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
