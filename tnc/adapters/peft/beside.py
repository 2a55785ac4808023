"""What is trained beside adapters: heads and biases, as `modules_to_save` and `bias`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tnc.adapters.bank import BANK
from tnc.adapters.peft.naming import PREFIX, is_saved
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
