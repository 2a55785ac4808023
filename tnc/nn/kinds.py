"""Kinds of structured layers: those that are applied alike, by the same kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tnc.kernels.applied import choices, dtypes, task_of, tuning
from tnc.kernels.device import CPU
from tnc.kernels.outcome import Outcome, outcome
from tnc.net import Network, Structure
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

    `reason` says why they take no generated kernels; empty where they do, and then `parts` has
    their networks, each with whether the bias is added with it.
    """

    paths: tuple[str, ...]
    structure: Structure
    view: str
    dtype: torch.dtype
    bias: bool
    reason: str
    parts: tuple[tuple[Network, bool], ...]
    device: str = CPU

    def outcomes(
        self, rows: Sequence[int], training: bool = False, how: str = "model", keep: float = 0.0
    ) -> tuple[tuple[Outcome, bool], ...]:
        """Choose for every network and number of rows; each outcome with the network's bias.

        Training may `keep` that many times the bytes of the input.
        """
        with tuning(how, keep):
            tasks = [
                (task_of(network, count, training, self.dtype, self.device), bias)
                for network, bias in self.parts
                for count in rows
            ]
            return tuple((outcome(t, choices(t)), bias) for t, bias in dict.fromkeys(tasks))


def kinds(uses: Iterable[Use]) -> tuple[Kind, ...]:
    """Gather layers into kinds, in the order in which they are first met."""
    found: dict[tuple[object, ...], list[Use]] = {}
    for use in uses:
        key = (use.structure, use.view.name, use.dtype, use.bias, use.read, use.device)
        found.setdefault(key, []).append(use)
    return tuple(_kind(group) for group in found.values())


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


def _kind(uses: Sequence[Use]) -> Kind:
    use = uses[0]
    reason = why_plain(use)
    parts: tuple[tuple[Network, bool], ...] = ()
    generated = use.view.generated(use.structure)
    if generated is not None and not reason:
        wide = use.structure.signature.outputs[0]
        parts = tuple(
            (part.applied.network, use.bias and place == 0 and part.covers == wide)
            for place, part in enumerate(generated.parts)
        )
    paths = tuple(each.path for each in uses)
    view = use.view.name
    return Kind(paths, use.structure, view, use.dtype, use.bias, reason, parts, use.device)


def why_plain(use: Use) -> str:
    """Say why a layer takes no generated kernels; empty where it does."""
    if use.read:
        return "its code reads the weight itself, so the weight is rebuilt"
    if use.view.generated(use.structure) is None:
        if use.structure.stored:
            return "sparse cores are read by place, not multiplied whole"
        return f"kernels are generated for linear layers, this one is of the kind {use.view.name}"
    known = dtypes(use.device)
    if not known:
        return f"kernels are generated for the CPU and CUDA, not for {use.device}"
    if use.dtype not in known:
        listed = ", ".join(known.values())
        return f"kernels are generated for {listed}, not for {str(use.dtype).split('.')[-1]}"
    return ""
