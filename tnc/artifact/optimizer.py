"""The state of an optimizer beside a model's tensors: `optimizer.safetensors`, without pickle.

Every tensor of the state is there as `NAME/SLOT`, by the name of its parameter; numbers, options of
groups and the order of parameters are JSON in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tnc.binding.draft import laid_out
from tnc.binding.resuming import follow
from tnc.binding.weights import unwrapped
from tnc.errors import ArtifactError, BindError
from tnc.optim.forms import form_of
from tnc.optim.kinds import Form

FILE = "optimizer.safetensors"
_KEY = "optimizer"


def write_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state of an optimizer of a model's parameters into a folder.

    Raises ArtifactError, naming parameter and slot, for what is no tensor and no number, for state
    that is sharded, and for parameters that are not of the model.
    """
    from safetensors.torch import save_file

    names, tensors = _names(model), dict[str, Tensor]()
    state: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        held = [_name(names, parameter, number) for parameter in group["params"]]
        options = {
            key: _plain(value, f"groups/{number}/{key}", tensors)
            for key, value in group.items()
            if key not in ("params", "param_names")
        }
        groups.append({"names": held, "options": options})
        for name, parameter in zip(held, group["params"]):
            slots = optimizer.state.get(parameter)
            if slots:
                state[name] = {k: _plain(v, f"{name}/{k}", tensors) for k, v in slots.items()}
    text = json.dumps({"class": type(optimizer).__name__, "groups": groups, "state": state})
    save_file(tensors, folder / FILE, metadata={_KEY: text})


def load_optimizer(
    folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> torch.optim.Optimizer:
    """Give an optimizer of a loaded artifact's model the state that was saved with it; return it.

    Build it as the one that was saved, with the same groups of parameters; options such as the rate
    come from the file. Parameters are told by name. It then follows as `tnc.follow` makes it.
    Raises ArtifactError, with nothing changed, where the artifact has no such state, where it is of
    another class, and where groups hold other parameters.

    >>> import tempfile, torch, tnc
    >>> net = torch.nn.Sequential(torch.nn.Linear(16, 16))
    >>> spec = tnc.Spec(version=1, rules=[{"match": "0", "structure": "low-rank", "keep": 0.5}])
    >>> made = tnc.compile(net, spec, example=torch.ones(2, 16))
    >>> adam = torch.optim.AdamW(made.model.parameters(), lr=0.25)
    >>> made.model(torch.ones(2, 16)).sum().backward(); adam.step()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = tnc.save(made, f"{folder}/a", optimizer=adam)
    ...     model = tnc.load(path, model=net)
    ...     again = tnc.load_optimizer(path, model, torch.optim.AdamW(model.parameters()))
    >>> again.param_groups[0]["lr"], again.state[model[0].cores["A"]]["step"]
    (0.25, tensor(1.))
    """
    path = Path(folder) / FILE
    saved, tensors = _read(path)
    if saved["class"] != type(optimizer).__name__:
        raise ArtifactError(
            f"the state is of {saved['class']}, the optimizer is {type(optimizer).__name__}",
            where=str(path),
            hint="build the optimizer that was saved",
        )
    names = _names(model)
    held = [
        [_name(names, parameter, number) for parameter in group["params"]]
        for number, group in enumerate(optimizer.param_groups)
    ]
    _check_groups(held, [group["names"] for group in saved["groups"]], path)
    places = {name: k for k, name in enumerate(name for group in held for name in group)}
    state = {
        places[name]: {slot: _restored(value, tensors) for slot, value in slots.items()}
        for name, slots in saved["state"].items()
    }
    groups = []
    for now, own, group in zip(optimizer.param_groups, held, saved["groups"]):
        options = {
            key: _like(_restored(value, tensors), now.get(key))
            for key, value in group["options"].items()
        }
        labels = {"param_names": list(own)} if "param_names" in now else {}
        groups.append({**options, **labels, "params": [places[name] for name in own]})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _lay_out_(optimizer)
    return follow(optimizer)


def _lay_out_(optimizer: torch.optim.Optimizer) -> None:
    """Give tensors the strides of their parameters: a file has none, and fused steps need them."""
    for group in optimizer.param_groups:
        try:
            form = form_of(optimizer, group)
        except BindError:  # of a class that binding does not know
            form = Form({})
        for parameter in group["params"]:
            slots = optimizer.state.get(parameter)
            if slots:
                slots.update({k: laid_out(value, parameter, form) for k, value in slots.items()})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtifactError(
            "the artifact has no optimizer state",
            where=str(path.parent),
            hint="tnc.save(compiled, folder, optimizer=optimizer) writes it",
        )
    try:
        with safe_open(path, framework="pt") as file:
            saved = json.loads((file.metadata() or {})[_KEY])
            return saved, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"{FILE} cannot be read: {error}", where=str(path), hint="copy the artifact again"
        ) from error


def _names(model: nn.Module) -> dict[int, str]:
    """Return the first name of every parameter, by identity; wrappers of torch are taken off."""
    return {id(parameter): name for name, parameter in unwrapped(model).named_parameters()}


def _name(names: Mapping[int, str], parameter: Tensor, group: int) -> str:
    if id(parameter) not in names:
        raise ArtifactError(
            f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is not of the "
            "model",
            where=f"group {group} of the optimizer",
            hint="give the optimizer of this model: tnc.bind makes one of the dense model's",
        )
    return names[id(parameter)]


def _plain(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON holds it; a tensor goes to `tensors`, its place is named instead."""
    if isinstance(value, Tensor):
        if hasattr(value, "full_tensor"):
            raise ArtifactError(
                "the optimizer's state is sharded",
                where=key,
                hint="save it by torch.distributed.checkpoint, or gather it first",
            )
        if hasattr(type(value), "__tensor_flatten__"):
            raise ArtifactError(
                f"the optimizer keeps a {type(value).__name__}, which no safetensors file can hold",
                where=key,
                hint="use torch.save, or torch.distributed.checkpoint",
            )
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": key}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(each, f"{key}/{place}", tensors) for place, each in enumerate(value)]
    raise ArtifactError(
        f"the optimizer keeps a {type(value).__name__}, which only pickle could save",
        where=key,
        hint="tensors, numbers and texts can be saved; else use torch.save",
    )


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value["tensor"]]
    if isinstance(value, list):
        return [_restored(each, tensors) for each in value]
    return value


def _like(value: Any, now: Any) -> Any:
    """Return an option in the type that it has in an optimizer: JSON knows no tuples."""
    return tuple(value) if isinstance(value, list) and not isinstance(now, list) else value


def _check_groups(held: list[list[str]], saved: list[list[str]], path: Path) -> None:
    """Raise ArtifactError where groups do not hold the same parameters, in any order."""
    for number, problem in _differences(held, saved):
        raise ArtifactError(
            f"group {number}: {problem}",
            where=str(path),
            hint="build the optimizer with the groups that it was saved with",
        )


def _differences(held: list[list[str]], saved: list[list[str]]) -> Iterator[tuple[int, str]]:
    for number in range(max(len(held), len(saved))):
        now = set(held[number]) if number < len(held) else set()
        then = set(saved[number]) if number < len(saved) else set()
        for name in sorted(now - then):
            yield number, f"{name} was not in it when it was saved"
        for name in sorted(then - now):
            yield number, f"{name} was in it when it was saved"
