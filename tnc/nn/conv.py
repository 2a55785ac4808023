"""Convolutions as chains of the library's own convolutions.

Every stage of `derive.chain` is one `conv2d`: contracted legs are its input channels, fresh legs
its output channels, kept legs its groups, and legs that the core ignores join the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tnc.derive.chain import Absorb, Chain, chain
from tnc.derive.cost import Work, rebuild_flops
from tnc.net import Network, Structure
from tnc.nn.dense import Rebuild, plan_rebuild

if TYPE_CHECKING:
    from tnc.nn.views import Conv2dView


@dataclass(frozen=True)
class ConvPlan:
    """The terms of a convolution, each with its chain, or with how its weight is rebuilt."""

    structure: Structure
    chains: tuple[Chain | Rebuild, ...]


def plan_convolution(view: Conv2dView, structure: Structure) -> ConvPlan:
    """Choose the chain of every term."""
    chains = tuple(
        chosen(view, structure, term) or plan_rebuild(Structure(structure.signature, (term,)))
        for term in structure.terms
    )
    return ConvPlan(structure, chains)


def convolve(
    view: Conv2dView,
    plan: ConvPlan,
    cores: Mapping[str, Tensor],
    bias: Tensor | None,
    x: Tensor,
) -> Tensor:
    """Convolve `x[b, i, y, x]`, or `x[i, y, x]`, with the weight of a structure."""
    single, structure = x.dim() == 3, plan.structure
    if single:
        x = x.unsqueeze(0)
    x, padding = _prepared(view, structure, x)
    total: Tensor | None = None
    for term, stages in zip(structure.terms, plan.chains):
        if isinstance(stages, Rebuild):
            weight = stages.run(cores)
            part = functional.conv2d(
                x, weight, None, view.stride, padding, view.dilation, view.groups
            )
        else:
            part = _run(view, structure, term, stages, cores, x, padding)
        total = part if total is None else total + part
    assert total is not None
    if bias is not None:
        total = total + bias.view(-1, 1, 1)
    return total.squeeze(0) if single else total


def chosen(view: Conv2dView, structure: Structure, term: Network) -> Chain | None:
    """Return the chain that the view runs, or None where rebuilding the weight is cheaper."""
    if view.groups > 1:
        return None
    stages = chain(term, view.pixels_in, view.pixels_out)
    work = Work("conv", view.pixels_out, view.pixels_in)
    if stages is None or rebuild_flops(term, structure.signature, work) < stages.flops:
        return None
    return stages


def _prepared(view: Conv2dView, structure: Structure, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Apply paddings that a convolution of one axis cannot: modes, and 'same' of even kernels."""
    kernel = structure.signature.inputs[1:]
    if isinstance(view.padding, str):
        if view.padding == "valid":
            return x, (0, 0)
        totals = [d * (k - 1) for d, k in zip(view.dilation, kernel)]
        before = [total // 2 for total in totals]
        after = [total - half for total, half in zip(totals, before)]
    else:
        before = after = list(view.padding)
    if view.padding_mode == "zeros" and before == after:
        return x, (before[0], before[1])
    mode = "constant" if view.padding_mode == "zeros" else view.padding_mode
    return functional.pad(x, (before[1], after[1], before[0], after[0]), mode=mode), (0, 0)


def _run(
    view: Conv2dView,
    structure: Structure,
    term: Network,
    stages: Chain,
    cores: Mapping[str, Tensor],
    x: Tensor,
    padding: tuple[int, int],
) -> Tensor:
    axes = term.equation.inputs[1:]
    missing = term.signature.inputs[0] - structure.signature.inputs[0]
    if missing:
        x = functional.pad(x, (0, 0, 0, 0, 0, missing))
    legs = list(term.equation.inputs[0])
    for stage in stages.stages:
        x, legs = _absorb(view, term, stage, cores[stage.core], x, legs, axes, padding)
    wanted = list(term.equation.outputs[0])
    if legs != wanted:
        x = _reordered(x, term, legs, wanted)
    want = structure.signature.outputs[0]
    return x if x.shape[1] == want else x.narrow(1, 0, want)


def _absorb(
    view: Conv2dView,
    term: Network,
    stage: Absorb,
    core: Tensor,
    x: Tensor,
    legs: list[str],
    axes: tuple[tuple[str, ...], ...],
    padding: tuple[int, int],
) -> tuple[Tensor, list[str]]:
    wanted = [*stage.passengers, *stage.groups, *stage.contracted]
    if legs != wanted:
        x = _reordered(x, term, legs, wanted)
    passengers = term.extent(stage.passengers)
    if passengers > 1:
        x = torch.unflatten(x, 1, (passengers, -1)).flatten(0, 1)
    order = [*stage.groups, *stage.fresh, *stage.contracted]
    taps = [tuple(n for n in axis if n in stage.kernel) for axis in axes]
    held = term.equation.core(stage.core).indices
    places = [held.index(n) for n in (*order, *(n for axis in taps for n in axis))]
    groups = term.extent(stage.groups)
    weight = core.permute(places).reshape(
        groups * term.extent(stage.fresh),
        term.extent(stage.contracted),
        *(term.extent(axis) for axis in taps),
    )
    here = [bool(axis) for axis in taps]
    x = functional.conv2d(
        x,
        weight,
        None,
        tuple(s if on else 1 for s, on in zip(view.stride, here)),
        tuple(p if on else 0 for p, on in zip(padding, here)),
        tuple(d if on else 1 for d, on in zip(view.dilation, here)),
        groups,
    )
    if passengers > 1:
        x = torch.unflatten(x, 0, (-1, passengers)).flatten(1, 2)
    return x, [*stage.passengers, *stage.groups, *stage.fresh]


def _reordered(x: Tensor, term: Network, legs: list[str], wanted: list[str]) -> Tensor:
    if len(legs) < 2:
        return x
    split = torch.unflatten(x, 1, [term.size[n] for n in legs])
    places = [1 + legs.index(n) for n in wanted]
    tail = [split.dim() - 2, split.dim() - 1]
    size = prod(term.size[n] for n in wanted)
    return split.permute(0, *places, *tail).reshape(x.shape[0], size, *x.shape[2:])
