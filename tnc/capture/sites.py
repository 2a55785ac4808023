"""From readings to sites: one for each weight, with all of its names and uses, or a reason."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import ceil
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from tnc.capture.kinds import layer_kind
from tnc.capture.record import Reading, Recorder
from tnc.capture.weights import Weights
from tnc.decide.site import Site, Use
from tnc.net import Signature

DTYPES = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")
Sorted = tuple[tuple[Site, ...], tuple[tuple[str, str], ...]]


def sort_out(model: nn.Module, weights: Weights, recorder: Recorder) -> Sorted:
    """Return the sites by name, and every other parameter of two or more dimensions with reason.

    Raises nothing: what cannot be a site is named, with what reads it.
    """
    sites, left, readings = [], [], recorder.readings
    for name, parameter in sorted(weights.parameters.items()):
        if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.dim() < 2:
            continue
        reason = refuses(model, weights, name, readings.get(name, ()))
        if reason:
            left.append((name, reason))
        else:
            sites.append(_site(model, weights, name, recorder))
    return tuple(sites), tuple(left)


def refuses(model: nn.Module, weights: Weights, name: str, found: Sequence[Reading]) -> str:
    """Say why a parameter is no site; empty when it is one."""
    parameter = weights.parameters[name]
    owner = model.get_submodule(name.rpartition(".")[0])
    dtype = str(parameter.dtype).removeprefix("torch.")
    if type(parameter.data).__torch_dispatch__ is not nn.Parameter.__torch_dispatch__:
        return f"a tensor subclass, {type(parameter.data).__name__}"
    if dtype not in DTYPES:
        return f"its dtype {dtype} is no floating-point type that fits support"
    if parameter.numel() == 0:
        return "it has no entries"
    if name in weights.overlaps:
        return f"it shares memory with {weights.overlaps[name]} in another layout"
    return _structural(model, owner, name) or _unreadable(owner, found)


def _structural(model: nn.Module, owner: nn.Module, name: str) -> str:
    parts = name.split(".")
    for cut in range(len(parts)):
        module = model.get_submodule(".".join(parts[:cut]))
        if hasattr(module, "structure") and isinstance(getattr(module, "cores", None), nn.Module):
            return "a core of a structured layer"
        if isinstance(module, parametrize.ParametrizationList):
            return "it is parametrized (torch.nn.utils.parametrize): remove the parametrization"
    if isinstance(owner, nn.Embedding) and owner.max_norm is not None:
        return "an embedding with max_norm changes its weight at each call"
    return ""


def _unreadable(owner: nn.Module, found: Sequence[Reading]) -> str:
    if not found:
        return "not reached by the example input"
    refused = sorted({r.read.reason for r in found if not r.read.kind})
    kinds = sorted({r.read.kind for r in found if r.read.kind})
    if not kinds:
        return "never read by a supported operation: " + "; ".join(refused)
    if refused:
        return f"besides its {' and '.join(kinds)} use: " + "; ".join(refused)
    if "conv" in kinds and len(kinds) > 1:
        return "read as a convolution and as a matrix"
    if "spectral" in kinds and len(kinds) > 1:
        return "read as a map for every mode and as one matrix"
    if len({_orientation(r) for r in found}) > 1:
        return "read in both directions, w and its transpose"
    if len({(r.read.groups, r.read.options) for r in found if r.read.kind == "conv"}) > 1:
        return "read by convolutions with different options"
    if isinstance(owner, nn.Embedding) and getattr(owner, "scale_grad_by_freq", False):
        return "an embedding with scale_grad_by_freq"
    return ""


def _orientation(reading: Reading) -> tuple[int, ...]:
    return (reading.read.summed, *reading.read.order)


def _site(model: nn.Module, weights: Weights, name: str, recorder: Recorder) -> Site:
    parameter, found = weights.parameters[name], recorder.readings[name]
    biases = {bias for weight, bias in recorder.biases if weight == name}
    transposed = found[0].read.summed == 0 and not found[0].read.order
    shape = tuple(parameter.shape)
    outputs, inputs = shape[:1], shape[1:]
    if transposed:
        outputs, inputs = shape[1:2], (shape[0], *shape[2:])
    if found[0].read.kind == "experts":
        outputs, inputs = (
            (shape[0], shape[2 if transposed else 1]),
            (shape[1 if transposed else 2],),
        )
    if found[0].read.order:
        o, *rest = (shape[axis] for axis in found[0].read.order)
        outputs, inputs = (o,), tuple(rest)
    return Site(
        name=name,
        aliases=weights.aliases[name],
        signature=Signature(outputs, inputs),
        dtype=str(parameter.dtype).removeprefix("torch."),
        uses=_uses(model, weights, name, found),
        transposed=transposed,
        trainable=parameter.requires_grad,
        biased=_biased(model, weights.aliases[name], biases),
        groups=found[0].read.groups,
        options=_options(model, weights.aliases[name], found),
        stored=found[0].read.order,
    )


def _uses(
    model: nn.Module, weights: Weights, name: str, found: Sequence[Reading]
) -> tuple[Use, ...]:
    """Merge the readings of one module into one use; parts of a weight count by their share."""
    merged: dict[tuple[str, str, str], list[Reading]] = {}
    for reading in found:
        view = _view(model, weights.aliases[name], reading)
        merged.setdefault((reading.place, reading.read.kind, view), []).append(reading)
    return tuple(
        Use(
            module=place,
            op=kind,
            view=view,
            rows=ceil(sum(r.rows * r.read.part for r in group) - 1e-9),
            rows_in=sum(r.rows_in for r in group),
            reads="+".join(r.tensor for r in group),
        )
        for (place, kind, view), group in merged.items()
    )


def _view(model: nn.Module, aliases: Sequence[str], reading: Reading) -> str:
    """Whether the layer that owns the weight ran, and is one that ours can stand in for."""
    module = model.get_submodule(reading.place)
    owns = any(getattr(module, "weight", None) is _get(model, a) for a in aliases)
    stands = owns and reading.place and layer_kind(module)  # nothing holds the model itself
    return "module" if stands else "parameter"


def _biased(model: nn.Module, aliases: Sequence[str], biases: Collection[str]) -> bool:
    """Whether the bias beside the weight is added to what it computes."""
    for alias in aliases:
        path, _, attribute = alias.rpartition(".")
        beside = attribute.replace("weight", "bias") if "weight" in attribute else "bias"
        if (f"{path}." if path else "") + beside in biases:
            return True
    return False


def _options(
    model: nn.Module, aliases: Sequence[str], found: Sequence[Reading]
) -> tuple[tuple[str, Any], ...]:
    """Return the layer's own options where it has them: padding by mode is done outside of it."""
    kind = next((r.read.kind for r in found if r.read.kind != "linear"), "linear")
    if kind == "linear":
        return ()
    reading = next(r for r in found if r.read.kind == kind)
    module = model.get_submodule(reading.place)
    if kind == "conv" and _view(model, aliases, reading) == "module":
        own = ["dilation", "padding", "padding_mode", "stride"]
        own += ["output_padding"] if reading.read.summed == 0 else []
        return tuple((name, _symmetric(module, name)) for name in sorted(own))
    return reading.read.options


def _symmetric(module: nn.Module, name: str) -> Any:
    """Write 'same' and 'valid' padding as numbers where one number a side is enough."""
    value = getattr(module, name)
    if name == "padding" and isinstance(value, str):
        width: Any = module._reversed_padding_repeated_twice
        sides = tuple(zip(width[0::2], width[1::2]))[::-1]
        return tuple(a for a, _ in sides) if all(a == b for a, b in sides) else value
    return value


def _get(model: nn.Module, name: str) -> Any:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path)._parameters.get(attribute)
