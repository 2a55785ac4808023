"""The optimizer state of a weight as if it were dense: read, or lifted from its cores'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.binding.weights import Cored
from tnc.optim.kinds import MOVING, OURS, Form, Kind

STARTED_ANEW = "{} is {}, which no map takes to cores: it starts anew"


@dataclass(frozen=True, eq=False)
class DenseState:
    """What an optimizer knows of one weight, in the layout of the dense parameter.

    `moving` holds the slots that are linear or quadratic in the gradient, `numbers` the scalars.
    `known` tells that the optimizer kept something, be it of kinds that do not move.
    """

    moving: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    gradient: Tensor | None
    group: int
    known: bool
    notes: tuple[str, ...] = ()


def read_dense(
    form: Form, state: Mapping[str, Any], parameter: nn.Parameter, group: int, options: Any
) -> DenseState:
    """Return the state that an optimizer keeps for a dense parameter."""
    held = {slot: value for slot, value in state.items() if slot not in OURS}
    grams = form.grams(tuple(parameter.shape), options)
    moving = {
        slot: value
        for slot, value in (form.read(held, parameter, options) if held else {}).items()
        if form.kinds[slot] is not Kind.GRAM or slot in grams
    }
    derived = MOVING | {Kind.SCALAR}
    left = [slot for slot in held if form.kinds[slot] not in derived]
    left += [slot for slot in held if form.kinds[slot] is Kind.GRAM and slot not in moving]
    return DenseState(
        moving=moving,
        numbers=_numbers(form, held),
        gradient=None if parameter.grad is None else parameter.grad.detach(),
        group=group,
        known=bool(held),
        notes=tuple(STARTED_ANEW.format(slot, form.kinds[slot].value) for slot in left),
    )


def lift_dense(
    form: Form,
    states: Mapping[str, Mapping[str, Any]],
    weight: Cored,
    group: int,
    options: Any,
) -> DenseState:
    """Return the dense state whose transport to a weight's cores is what the optimizer keeps.

    A momentum is the smallest that pulls back to the cores'; a second moment comes near. Gram
    matrices stay behind: a rule makes new ones from the second moment, or the weight starts anew.
    """
    parts = {
        name: form.read(
            {slot: value for slot, value in states[name].items() if slot not in OURS},
            weight.layer.cores[name],
            options,
        )
        for name in weight.trainable
    }
    moving = {}
    common = set.intersection(*(set(part) for part in parts.values()))
    grams = [form.grams(tuple(weight.layer.cores[name].shape), options) for name in parts]
    if any(grams) and not any(form.kinds[slot] is Kind.DIAGONAL for slot in common):
        common = set()  # a momentum alone would meet preconditioners of zero
    for slot in sorted(slot for slot in common if form.kinds[slot] is not Kind.GRAM):
        given = {
            name: weight.whole(name, parts[name][slot].to(_wide(parts[name][slot])))
            for name in parts
        }
        moving[slot] = weight.stored(_lifted(form.kinds[slot], weight, given))
    _floor(form, moving)
    first = states[weight.trainable[0]]
    gradients = {name: weight.layer.cores[name].grad for name in weight.trainable}
    gradient = None
    if all(found is not None for found in gradients.values()):
        whole = {
            name: weight.whole(name, found.detach())
            for name, found in gradients.items()
            if found is not None
        }
        gradient = weight.stored(weight.transport.lift(whole))
    numbers = _numbers(form, first) if moving else {}  # a step count without moments misleads
    return DenseState(moving, numbers, gradient, group, True)


def _floor(form: Form, moving: dict[str, Tensor]) -> None:
    """Keep second moments above squared momenta: a lift may be near zero where the other is not."""
    squares = [
        value.square() for slot, value in moving.items() if form.kinds[slot] is Kind.COVECTOR
    ]
    for slot, value in moving.items():
        for square in squares:
            if form.kinds[slot] is Kind.DIAGONAL:
                moving[slot] = value = torch.maximum(value, square)
            elif form.kinds[slot] is Kind.MAGNITUDE:
                moving[slot] = value = torch.maximum(value, square.sqrt())


def _lifted(kind: Kind, weight: Cored, given: Mapping[str, Tensor]) -> Tensor:
    if kind is Kind.COVECTOR:
        return weight.transport.lift(given)
    if kind is Kind.DIAGONAL:
        return weight.transport.lift_squared(given)
    squares = {name: value.square() for name, value in given.items()}
    return weight.transport.lift_squared(squares).sqrt()


def pulled(kind: Kind, weight: Cored, stored: Tensor) -> dict[str, Tensor]:
    """Return a dense slot moved to every trainable core, in the shape that the core stores."""
    mapped = weight.mapped(stored).to(_wide(stored))
    transport = weight.transport
    if kind is Kind.COVECTOR:
        found = transport.pull(mapped)
    elif kind is Kind.DIAGONAL:
        found = transport.pull_squared(mapped)
    else:
        squares = transport.pull_squared(mapped.square())
        found = {name: value.sqrt() for name, value in squares.items()}
    return {
        name: weight.kept(name, value.clamp_min(0) if kind is not Kind.COVECTOR else value)
        for name, value in found.items()
        if name in weight.trainable
    }


def _numbers(form: Form, state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        slot: value.clone() if isinstance(value, Tensor) else value
        for slot, value in state.items()
        if form.kinds.get(slot) is Kind.SCALAR
    }


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
