"""A structure as a product of two matrices, where its networks can be cut in two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod

import torch
from torch import Tensor

from tnc.adapters.low_rank import LowRank
from tnc.net import Core, Network, Signature, Structure

MOST_FREE = 12
"""Cores without a leg that are tried on both sides of a cut."""


def cut(structure: Structure, cores: Mapping[str, Tensor]) -> LowRank | None:
    """Return a structure as a product of two matrices, or None where a core spans both sides.

    Each term is cut where the product of the bonds is least; the terms stand side by side. Ranks
    that a core of one index (gates, singular values) has set to zero are left out.
    """
    parts = []
    for term in structure.terms:
        part = _cut_term(term, structure.signature, cores)
        if part is None:
            return None
        parts.append(part)
    return LowRank(torch.cat([p.left for p in parts], -1), torch.cat([p.right for p in parts], -2))


def _cut_term(term: Network, signature: Signature, cores: Mapping[str, Tensor]) -> LowRank | None:
    equation = term.equation
    stack, (outputs, inputs) = _legs(term)
    if set(outputs) & set(inputs) or not {*outputs, *inputs} <= _indices(equation.cores):
        return None
    best: tuple[int, frozenset[str], tuple[str, ...]] | None = None
    for side in _sides(equation.cores, set(outputs), set(inputs)):
        rest = [core for core in equation.cores if core.name not in side]
        mine = [core for core in equation.cores if core.name in side]
        crossing = tuple(sorted((_indices(mine) & _indices(rest)) - set(stack)))
        size = prod(term.size[name] for name in crossing)
        if best is None or size < best[0]:
            best = (size, side, crossing)
    if best is None:
        return None
    size, side, crossing = best
    mine = [core for core in equation.cores if core.name in side]
    rest = [core for core in equation.cores if core.name not in side]
    left = _product(term, mine, cores, (*stack, *outputs, *crossing))
    right = _product(term, rest, cores, (*stack, *crossing, *inputs))
    lead = [prod(term.size[name] for name in stack)] if stack else []
    left = left.reshape(*lead, *(term.extent(a) for a in equation.outputs[len(stack) :]), size)
    left = _trimmed(left, (*signature.outputs[len(lead) :], size), len(lead))
    right = right.reshape(*lead, size, *(term.extent(axis) for axis in equation.inputs))
    right = _trimmed(right, (size, *signature.inputs), len(lead))
    left, right = left.reshape(*lead, -1, size), right.reshape(*lead, size, -1)
    if any(len(core.indices) == 1 for core in equation.cores):
        left, right = _without_zeros(left, right)
    return LowRank(left.contiguous(), right.contiguous())


def _legs(term: Network) -> tuple[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]]:
    outputs = term.equation.outputs
    stack = outputs[0] if len(outputs) > 1 else ()
    return stack, (
        tuple(name for axis in outputs[1 if stack else 0 :] for name in axis),
        term.equation.input_indices,
    )


def _indices(cores: tuple[Core, ...] | list[Core]) -> set[str]:
    return {name for core in cores for name in core.indices}


def _sides(
    cores: tuple[Core, ...], outputs: set[str], inputs: set[str]
) -> Iterator[frozenset[str]]:
    """Yield the sets of cores that can stand on the side of the outputs."""
    fixed, free = [], []
    for core in cores:
        here = set(core.indices)
        if here & outputs and here & inputs:
            return
        if here & outputs:
            fixed.append(core.name)
        elif not here & inputs:
            free.append(core.name)
    if len(free) > MOST_FREE:
        return
    for chosen in product((True, False), repeat=len(free)):
        yield frozenset((*fixed, *(name for name, yes in zip(free, chosen) if yes)))


def _product(
    term: Network, chosen: list[Core], cores: Mapping[str, Tensor], result: tuple[str, ...]
) -> Tensor:
    number = {name: place for place, name in enumerate(term.equation.indices)}
    given: list[object] = []
    for core in chosen:
        given += [cores[core.name].detach(), [number[name] for name in core.indices]]
    found: Tensor = torch.einsum(*given, [number[name] for name in result])
    return found


def _trimmed(tensor: Tensor, shape: tuple[int, ...], lead: int) -> Tensor:
    for axis, size in enumerate(shape, start=lead):
        tensor = tensor.narrow(axis, 0, size)
    return tensor


def _without_zeros(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    alive = left.abs().amax(-2).ne(0) & right.abs().amax(-1).ne(0)
    alive = alive.reshape(-1, alive.shape[-1]).any(0)
    if not bool(alive.any()):
        alive[0] = True
    return left[..., alive], right[..., alive, :]
