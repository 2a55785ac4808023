"""Time a layer alone: for budgets in seconds."""

from __future__ import annotations

import time
from dataclasses import replace
from math import prod
from statistics import median

import torch
from torch import nn

from tnc.decide.group import Group
from tnc.decide.site import Site
from tnc.decide.target import Target
from tnc.kernels.turns import Run, block
from tnc.net import Structure
from tnc.nn import ConvView, StructuredLayer
from tnc.nn.generated import plain_kernels
from tnc.rewrite.edit import view_for

WARM, REPEATS = 2, 9


@plain_kernels(False)
def layer_seconds(target: Target, structure: Structure | None) -> float:
    """Return the median seconds of one forward of a layer on the example's rows, in float32.

    Layers run as they will on this machine, by generated kernels where those apply.
    A weight that its code reads itself is timed as that code runs: rebuilt, then applied.
    """
    site = target.sites[0]
    if target.group.stacked:
        own = next(target.group.members(structure))[1] if structure is not None else None
        alone = replace(target, group=Group((site,)))
        return len(target.sites) * layer_seconds(alone, own)
    x = _input(target)
    layer = _dense(target) if structure is None else _structured(target, structure)
    with torch.no_grad():
        if structure is not None and site.rebuilt:
            dense = _dense(target)
            return _seconds(lambda: (layer.weight, dense(x)))
        return _seconds(lambda: layer(x))


def _seconds(run: Run) -> float:
    return median([block(run, 1, time.perf_counter) for _ in range(WARM + REPEATS)][WARM:])


def _input(target: Target) -> torch.Tensor:
    site, inputs = target.sites[0], target.signature.inputs
    if site.op == "embedding":
        return torch.zeros(site.work.rows, dtype=torch.long)
    if site.op == "conv":
        n = len(inputs) - 1
        side = max(max(inputs[1:]), round(site.work.rows_in ** (1 / n)))
        channels = inputs[0] if site.transposed else inputs[0] * site.groups
        return torch.ones(1, channels, *[side] * n)
    if site.op == "spectral":
        return torch.ones(prod(inputs[1:]), site.work.rows, inputs[0], dtype=_dtype(site))
    return torch.ones(site.work.rows, inputs[0], dtype=_dtype(site))


def _dense(target: Target) -> nn.Module:
    site, outputs, inputs = target.sites[0], target.signature.outputs, target.signature.inputs
    if site.op == "embedding":
        return nn.Embedding(outputs[0], inputs[0])
    if site.op == "spectral":
        return _Modewise(torch.ones(prod(inputs[1:]), inputs[0], outputs[0], dtype=_dtype(site)))
    if site.op != "conv":
        return nn.Linear(inputs[0], outputs[-1], dtype=_dtype(site))
    view = view_for(site, "conv", False)
    assert isinstance(view, ConvView)
    return view.dense_layer(target.signature)


def _structured(target: Target, structure: Structure) -> StructuredLayer:
    site, generator = target.sites[0], torch.Generator().manual_seed(0)
    view = view_for(site, site.op, False)
    if not site.is_complex:
        return StructuredLayer.initialised(structure, view, 0.02, generator=generator)
    cores = {n: torch.ones(s, dtype=torch.complex64) for n, s in structure.shapes.items()}
    return StructuredLayer(structure, view, cores)


def _dtype(site: Site) -> torch.dtype:
    return torch.complex64 if site.is_complex else torch.float32


class _Modewise(nn.Module):
    """A matrix for every mode: `[modes, rows, i]` to `[modes, rows, o]`."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bmm(x, self.weight)
