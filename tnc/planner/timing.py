"""Time a layer alone: for budgets in seconds."""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import nn

from tnc.decide.matching import Target
from tnc.derive.initial import core_std
from tnc.net import Structure
from tnc.nn import StructuredLayer
from tnc.rewrite.edit import view_for

REPEATS = 7


def layer_seconds(target: Target, structure: Structure | None) -> float:
    """Return the median seconds of one forward of a layer on the example's rows."""
    site = target.sites[0]
    kind = "linear" if site.op == "linear" else site.op
    outputs, inputs = target.signature.outputs, target.signature.inputs
    layer: nn.Module
    if structure is None:
        layer = (
            nn.Conv2d(inputs[0], outputs[0], (inputs[1], inputs[2]))
            if kind == "conv"
            else nn.Linear(inputs[0], outputs[0])
        )
    else:
        deviations = core_std(structure, 0.02)
        cores = {
            name: torch.full(shape, deviations.get(name, 1.0))
            for name, shape in structure.shapes.items()
        }
        layer = StructuredLayer(structure, view_for(site, kind, False), cores)
    if kind == "embedding":
        x = torch.zeros(site.work.rows, dtype=torch.long)
        layer = layer if structure is not None else nn.Embedding(outputs[0], inputs[0])
    elif kind == "conv":
        side = max(max(inputs[1:]), round(site.work.rows_in**0.5))
        x = torch.ones(1, inputs[0], side, side)
    else:
        x = torch.ones(site.work.rows, inputs[0])
    return median(_once(layer, x) for _ in range(REPEATS))


def _once(layer: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        started = time.perf_counter()
        layer(x)
        return time.perf_counter() - started
