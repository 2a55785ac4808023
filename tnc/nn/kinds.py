"""Kinds of structured layers: those that are applied alike, by the same kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from tnc.kernels.applied import tuning
from tnc.kernels.device import CPU
from tnc.kernels.shown import Explained
from tnc.net import Structure
from tnc.nn.given import Given
from tnc.nn.layer import StructuredLayer
from tnc.nn.rebuilt import SUFFIX
from tnc.nn.view import View


@dataclass(frozen=True)
class Use:
    """One layer: its path in the model, what it is, and whether code reads its weight instead."""

    path: str
    structure: Structure
    view: View
    dtype: torch.dtype
    bias: bool
    read: bool = False
    device: str = CPU


@dataclass(frozen=True)
class Kind:
    """Layers of one structure, view, dtype and bias on one type of device.

    `reason` says why they take no generated kernels; empty where they do.
    """

    paths: tuple[str, ...]
    structure: Structure
    view: View
    dtype: torch.dtype
    bias: bool
    reason: str
    device: str = CPU

    def outcomes(self, given: Given, how: str = "model") -> tuple[Explained, ...]:
        """Choose for every network and everything that is given; none where there is a reason."""
        if self.reason:
            return ()
        given = replace(given, dtype=self.dtype, device=self.device)
        with tuning(how, given.keep, given.compile):
            return self.view.outcomes(self.structure, given, self.bias)


def kinds(uses: Iterable[Use]) -> tuple[Kind, ...]:
    """Gather layers into kinds, in the order in which they are first met."""
    found: dict[tuple[object, ...], list[Use]] = {}
    for use in uses:
        view = use.view.kernel_view
        key = (use.structure, view, use.dtype, use.bias, use.read, use.device)
        found.setdefault(key, []).append(use)
    return tuple(
        Kind(
            tuple(each.path for each in group),
            group[0].structure,
            group[0].view,
            group[0].dtype,
            group[0].bias,
            why_plain(group[0]),
            group[0].device,
        )
        for group in found.values()
    )


def kinds_of(model: nn.Module) -> tuple[Kind, ...]:
    """Return the kinds of a model's structured layers."""
    return kinds(
        _use(path, layer)
        for path, layer in model.named_modules()
        if isinstance(layer, StructuredLayer)
    )


def _use(path: str, layer: StructuredLayer) -> Use:
    core, read = next(layer.cores.parameters()), path.endswith(SUFFIX)
    path, bias = path.removesuffix(SUFFIX), layer.bias is not None
    return Use(path, layer.structure, layer.view, core.dtype, bias, read, core.device.type)


def why_plain(use: Use) -> str:
    """Say why a layer takes no generated kernels; empty where it does."""
    if use.read:
        return "its code reads the weight itself, so the weight is rebuilt"
    return use.view.why_plain(use.structure, use.dtype, use.device)
