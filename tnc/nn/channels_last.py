"""Channels last in memory through a whole model: its entrance, and the weights of convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tnc.nn.conv_stage import FORMATS, is_last
from tnc.nn.conv_view import ConvView
from tnc.nn.layer import StructuredLayer


def enter_last(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Lay out images that a model is given with channels last: a hook before its forward."""
    return tuple(map(_entered, args)), {name: _entered(value) for name, value in kwargs.items()}


def _entered(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim() - 2 in FORMATS:
        return value.contiguous(memory_format=FORMATS[value.dim() - 2])
    return value


def has_entrance(model: nn.Module) -> bool:
    """Whether images are laid out where they enter the model."""
    return any(hook is enter_last for hook in model._forward_pre_hooks.values())


def make_entrance_(model: nn.Module) -> None:
    """Lay out images where they enter the model, once."""
    if not has_entrance(model):
        model.register_forward_pre_hook(enter_last, with_kwargs=True)


def lay_out_weights_(model: nn.Module) -> tuple[str, ...]:
    """Lay out the weights of the library's convolutions; return the paths of those that changed.

    Structured layers need nothing: they follow the input that they get.
    """
    changed = []
    for path, module in convolutions(model):
        weight = module._parameters.get("weight")
        if weight is not None and not keeps(weight):
            weight.data = weight.data.contiguous(memory_format=FORMATS[weight.dim() - 2])
            changed.append(path)
    return tuple(changed)


def is_laid_out(model: nn.Module) -> bool:
    """Whether any convolution's weight lies with channels last, and in no other way."""
    weights = (module._parameters.get("weight") for _, module in convolutions(model))
    return any(weight is not None and is_last(weight) for weight in weights)


def convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's convolutions of two and three axes, structured or not, by path."""
    for path, module in model.named_modules():
        if isinstance(module, StructuredLayer):
            axes = len(module.structure.signature.inputs) - 1
            if isinstance(module.view, ConvView) and axes in FORMATS:
                yield path, module
        elif isinstance(module, _ConvNd) and len(module.kernel_size) in FORMATS:
            yield path, module


def keeps(x: Tensor) -> bool:
    """Whether a tensor lies with channels last, or equally well so."""
    wanted = FORMATS.get(x.dim() - 2, torch.contiguous_format)
    return x.is_contiguous(memory_format=wanted)
