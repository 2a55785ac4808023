"""The stored probe: inputs and outputs that a reloaded model must reproduce."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tnc.errors import ArtifactError

Probe = tuple[tuple[Any, ...], dict[str, Any]]
_PLAIN = (type(None), bool, int, float, str)


def probe_data(
    probe: Probe, outputs: tuple[Tensor, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the form of a probe as plain data, and the tensors of its inputs and outputs.

    Raises ArtifactError for an input that is neither tensors nor plain values.
    """
    tensors: dict[str, Tensor] = {}
    args, kwargs = probe
    form = {
        "args": [_form(value, f"args.{k}", tensors) for k, value in enumerate(args)],
        "kwargs": {name: _form(value, f"kwargs.{name}", tensors) for name, value in kwargs.items()},
    }
    tensors |= {f"outputs.{k}": value for k, value in enumerate(outputs)}
    return form, {k: v.detach().contiguous().cpu().clone() for k, v in tensors.items()}


def probe_inputs(form: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Probe:
    """Read the inputs back from what `probe_data` returned."""
    args = tuple(_value(item, tensors) for item in form["args"])
    return args, {name: _value(item, tensors) for name, item in form["kwargs"].items()}


def same_outputs(found: tuple[Tensor, ...], stored: Mapping[str, Tensor], rtol: float) -> str:
    """Say how outputs differ from those of a probe file; empty when they do not."""
    for number, tensor in enumerate(found):
        want = stored.get(f"outputs.{number}")
        if want is None or want.shape != tensor.shape:
            return f"output {number} changed its shape or is new"
        got, wanted = tensor.detach().cpu().double(), want.double()
        kinds = (torch.isnan, torch.isposinf, torch.isneginf)
        if not all(torch.equal(kind(got), kind(wanted)) for kind in kinds):
            return f"output {number} is not finite at other places than the stored one"
        finite = torch.isfinite(wanted)
        scale = float(wanted[finite].norm()) or 1.0
        gap = float((got[finite] - wanted[finite]).norm()) / scale
        if not gap <= max(
            rtol, 8 * torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
        ):
            return f"output {number} differs by {gap:.3g} (relative norm)"
    return ""


def _form(value: Any, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if type(value) in _PLAIN:
        return {"plain": value}
    if type(value) in (list, tuple):
        items = [_form(item, f"{name}.{k}", tensors) for k, item in enumerate(value)]
        return {type(value).__name__: items}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _form(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    raise ArtifactError(
        f"{name} of the example input is a {type(value).__name__}, which cannot be stored",
        hint="compile with an example of tensors, numbers, texts, and lists or dicts of them",
    )


def _value(item: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, held),) = item.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {key: _value(inner, tensors) for key, inner in held.items()}
    if kind == "plain":
        return held
    values = [_value(inner, tensors) for inner in held]
    return tuple(values) if kind == "tuple" else values
