"""Gram matrices of a weight's gradient moved to those of its cores' gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tnc.binding.weights import Cored
from tnc.optim.kinds import Form, Group, Kind

LARGEST = 8192
"""The longest side of a weight, or mode of a core, whose Gram matrix is formed to be moved."""

Axes = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Side:
    """The Gram matrix of all outputs, or all inputs, of a weight, and whether it is known."""

    gram: Tensor
    known: bool


@dataclass(frozen=True, eq=False)
class Moved:
    """What came to the cores: Gram matrices by core and slot, and by core how each was found."""

    slots: Mapping[str, Mapping[str, Tensor]]
    told: Mapping[str, str]


NONE = Moved({}, {})


def move_grams(form: Form, moving: Mapping[str, Tensor], weight: Cored, options: Group) -> Moved:
    """Move the Gram matrices among a weight's slots to its cores.

    A mode of a core that is summed over all of one side of the weight (the rank side of a low-rank
    factor) has its Gram matrix exactly; elsewhere the weight's gradient is modelled as having
    covariance `L x R / tr L`. A side of the weight whose own is not known is modelled too: by the
    product of its axes' where the slots hold them, else as a multiple of the identity.
    """
    given = {slot: value for slot, value in moving.items() if form.kinds[slot] is Kind.GRAM}
    if not given:
        return NONE
    shape = weight.layer.structure.signature.shape
    outputs = len(weight.layer.structure.signature.outputs)
    longest = max(prod(shape[:outputs]), prod(shape[outputs:]))
    if longest > LARGEST:
        reason = f"Gram matrices anew: a side of {longest} is above {LARGEST}"
        return Moved({}, dict.fromkeys(weight.trainable, reason))
    stored = [0] * len(shape)
    for mapped, axis in enumerate(weight.order):
        stored[axis] = shape[mapped]
    places = form.grams(tuple(stored), options)
    grams = {}
    for slot, gram in given.items():
        axes = tuple(weight.order.index(axis) for axis in places[slot])
        wide = gram.to(torch.promote_types(gram.dtype, torch.float32))
        grams[axes] = wide.reshape([shape[axis] for axis in axes] * 2)
    left = _side(grams, tuple(range(outputs)), shape)
    right = _side(grams, tuple(range(outputs, len(shape))), shape)
    slots: dict[str, dict[str, Tensor]] = {}
    told: dict[str, str] = {}
    for name in weight.trainable:
        slots[name], told[name] = _to_core(form, weight, name, left, right, options)
    return Moved(slots, told)


def _to_core(
    form: Form, weight: Cored, name: str, left: Side, right: Side, options: Group
) -> tuple[dict[str, Tensor], str]:
    core = weight.layer.cores[name]
    found: dict[str, Tensor] = {}
    exact: list[str] = []
    modelled: list[str] = []
    if weight.layer.positions.get(name) is not None:
        if core.numel() <= LARGEST:
            diagonal = weight.kept(name, weight.transport.kronecker(left.gram, right.gram)[name])
            for slot in form.grams(tuple(core.shape), options):
                found[slot] = torch.diag(diagonal)
                modelled.append(slot)
    else:
        legs = weight.transport.legs(name)
        for slot, axes in form.grams(tuple(core.shape), options).items():
            if prod(core.shape[axis] for axis in axes) > LARGEST:
                continue
            modes = tuple(legs[axis] for axis in axes)
            found[slot] = weight.transport.gram(name, modes, left.gram, right.gram)
            side = {"outputs": left, "inputs": right}.get(weight.transport.exact(name, modes))
            (exact if side is not None and side.known else modelled).append(slot)
    said = [
        f"{', '.join(names)} {how}"
        for names, how in ((exact, "exact"), (modelled, "by the Kronecker model"))
        if names
    ]
    return found, "; ".join(said) or "Gram matrices anew"


def _side(grams: Mapping[Axes, Tensor], axes: Axes, shape: tuple[int, ...]) -> Side:
    """Put together the Gram matrix of some axes from those that are known."""
    wanted = tuple(axis for axis in axes if shape[axis] > 1)
    rows = prod(shape[axis] for axis in axes)
    total = next(iter(grams.values()))
    trace = total.reshape(int(total.numel() ** 0.5), -1).trace()
    for held, gram in grams.items():
        if set(held) >= set(wanted):
            return Side(_traced(gram, held, wanted).reshape(rows, rows), True)
    left, parts = list(wanted), []
    for held, gram in grams.items():
        covered = tuple(axis for axis in held if axis in wanted)
        if covered and set(covered) <= set(left):
            parts.append((covered, _traced(gram, held, covered)))
            left = [axis for axis in left if axis not in covered]
    for axis in left:
        parts.append(((axis,), torch.eye(shape[axis]).to(total) * (trace / shape[axis])))
    return Side(_product(parts, wanted, trace).reshape(rows, rows), False)


def _product(parts: list[tuple[Axes, Tensor]], wanted: Axes, trace: Tensor) -> Tensor:
    """Return the Kronecker product of Gram matrices over `trace` but once, axes in order."""
    rows = {axis: place for place, axis in enumerate(wanted)}
    operands: list[object] = []
    for axes, gram in parts:
        operands += [gram, [*(rows[a] for a in axes), *(len(wanted) + rows[a] for a in axes)]]
    found: Tensor = torch.einsum(*operands, list(range(2 * len(wanted))))
    return found / trace.clamp_min(1e-38) ** (len(parts) - 1)


def _traced(gram: Tensor, held: Axes, wanted: Axes) -> Tensor:
    """Return a Gram tensor `[held, held]` summed over the diagonal of what is not wanted."""
    count = len(held)
    second = [count + place if axis in wanted else place for place, axis in enumerate(held)]
    kept = [held.index(axis) for axis in wanted]
    found: Tensor = torch.einsum(
        gram, [*range(count), *second], [*kept, *(count + place for place in kept)]
    )
    return found
