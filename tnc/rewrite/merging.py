"""Put the product of two layers into one structured layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from tnc.derive.halves import halves
from tnc.derive.merging import Merged, merged
from tnc.net import Core, Equation, Network, Structure
from tnc.nn import LinearView, StructuredLayer
from tnc.nn.dense import rebuild
from tnc.rewrite.reparam import Reparam


def plan_merge(first: nn.Module, second: nn.Module) -> Merged | None:
    """Choose the form of the product of two linear layers; None where all cost more."""
    rows = max([1, *(view.rows for view in _views(first, second))])
    return merged(structure_of(first), structure_of(second), rows)


def structure_of(layer: nn.Module) -> Structure:
    """Return the structure of a linear layer; a dense one has one core, W[o i]."""
    if isinstance(layer, StructuredLayer):
        return layer.structure
    dense = cast("nn.Linear", layer)
    equation = Equation((Core("W", ("o", "i")),), (("i",),), (("o",),))
    return Structure.of(Network.of(equation, {"o": dense.out_features, "i": dense.in_features}))


def merge_layers(plan: Merged, first: nn.Module, second: nn.Module) -> StructuredLayer:
    """Build the layer that computes `second(first(x))`; cores that are kept are the same ones."""
    with torch.no_grad():
        after, before = _dense(second), _dense(first)
        matrix = after @ before
        kept: dict[str, Tensor] = {}
        if plan.keeps == "first":
            matrix = after @ _half(cast("StructuredLayer", first), plan.cores, 1)
        elif plan.keeps == "second":
            names = set(cast("StructuredLayer", second).structure.shapes) - set(plan.cores)
            matrix = _half(cast("StructuredLayer", second), tuple(names), 0) @ before
        if plan.cores:
            cores = cast("StructuredLayer", first if plan.keeps == "first" else second).cores
            kept = {name: cores[name] for name in plan.cores}
        parameter = next(first.parameters())
        bias = _bias(first, second, after)
    shape = plan.structure.shapes[plan.name]
    new = nn.Parameter(matrix.reshape(shape).to(parameter.dtype), parameter.requires_grad)
    if bias is not None:
        bias = nn.Parameter(bias.to(parameter.dtype), parameter.requires_grad)
    view = next(iter(_views(first, second)), LinearView())
    layer = StructuredLayer(plan.structure, view, {**kept, plan.name: new}, bias)
    return layer.train(first.training)


def merged_reparams(
    known: Sequence[Reparam], pair: tuple[str, str], layer: StructuredLayer
) -> tuple[Reparam, ...]:
    """Return what became of the weights: those of both layers are in the first one's cores."""
    cores = {f"{path}.cores." for path in pair}
    old = [r for r in known if any(new.startswith(tuple(cores)) for _, new in r.new)]
    last = old[-1]
    made = replace(
        last,
        old=tuple(name for r in old for name in r.old),
        structure=layer.structure,
        new=tuple((name, f"{pair[0]}.cores.{name}") for name in layer.structure.shapes),
        note=f"the product of {pair[1]} and {pair[0]}",
        merged=True,
    )
    return (*(r for r in known if r not in old), made)


def _views(*layers: nn.Module) -> list[LinearView]:
    structured = [layer for layer in layers if isinstance(layer, StructuredLayer)]
    return [layer.view for layer in structured if isinstance(layer.view, LinearView)]


def _dense(layer: nn.Module) -> Tensor:
    """Return the weight `[outputs, inputs]` in float64."""
    if isinstance(layer, StructuredLayer):
        return rebuild(layer.structure, _double(layer))
    return cast("nn.Linear", layer).weight.double()


def _half(layer: StructuredLayer, front: tuple[str, ...], which: int) -> Tensor:
    """Return the front (0) or the back (1) of a layer as a matrix, all that it covers."""
    split = halves(layer.structure, frozenset(front))
    assert split is not None
    return rebuild(split[which], _double(layer)).reshape(
        prod(split[which].signature.outputs), prod(split[which].signature.inputs)
    )


def _double(layer: StructuredLayer) -> dict[str, Tensor]:
    return {name: core.double() for name, core in layer.tensors().items()}


def _bias(first: nn.Module, second: nn.Module, after: Tensor) -> Tensor | None:
    bias = cast("Tensor | None", second.bias)
    total = None if bias is None else bias.double()
    if first.bias is not None:
        moved = after @ cast("Tensor", first.bias).double()
        total = moved if total is None else total + moved
    return total
