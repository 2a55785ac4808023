"""The optimizer state of a weight as if it were dense: read, or lifted from its cores'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tnc.binding.weights import Cored
from tnc.optim.following import LEFT, STEPS
from tnc.optim.kinds import MOVING, OURS, Form, Group, Kind

STARTED_ANEW = "{} is {}, which no map takes to cores: it starts anew"


@dataclass(frozen=True, eq=False)
class DenseState:
    """What an optimizer knows of one weight, in the layout of the dense parameter.

    `moving` holds the slots that are linear or quadratic in the gradient, `numbers` the scalars,
    `types` the type of a slot's tensors where it is not its parameter's. `known` tells that the
    optimizer kept something, be it of kinds that do not move; `reason` says why nothing moves.
    """

    moving: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    gradient: Tensor | None
    known: bool
    types: Mapping[str, torch.dtype]
    notes: tuple[str, ...] = ()
    reason: str = "its state cannot be moved"


def nothing(known: bool, reason: str, notes: tuple[str, ...] = ()) -> DenseState:
    """Return a state of which nothing moves."""
    return DenseState({}, {}, None, known, {}, notes=notes, reason=reason)


def read_dense(
    form: Form, state: Mapping[str, Any], parameter: nn.Parameter, options: Group
) -> DenseState:
    """Return the state that an optimizer keeps for a dense parameter."""
    gradient = None if parameter.grad is None else parameter.grad.detach()
    if gradient is not None and gradient.is_sparse:
        gradient = gradient.to_dense()
    held = {slot: value for slot, value in state.items() if slot not in OURS}
    if not _begun(held):
        return replace(nothing(False, "the optimizer kept nothing of it"), gradient=gradient)
    grams = form.grams(tuple(parameter.shape), options)
    moving = {
        slot: value
        for slot, value in form.read(held, parameter, options).items()
        if form.kinds[slot] in MOVING and (form.kinds[slot] is not Kind.GRAM or slot in grams)
    }
    left = [
        slot
        for slot in held
        if form.kinds[slot] not in MOVING | {Kind.SCALAR, Kind.GRAM}
        or (form.kinds[slot] is Kind.GRAM and slot not in moving)
    ]
    return DenseState(
        moving=moving,
        numbers=_numbers(form, state),
        gradient=gradient,
        known=True,
        types=_types(held, parameter),
        notes=tuple(STARTED_ANEW.format(slot, form.kinds[slot].value) for slot in left),
    )


def lift_dense(
    form: Form, states: Mapping[str, Mapping[str, Any]], weight: Cored, options: Group
) -> DenseState:
    """Return the dense state whose transport to a weight's cores is what the optimizer keeps.

    A momentum is the smallest that pulls back to the cores'; a second moment comes near. Gram
    matrices stay behind: a rule makes new ones from the second moment, or the weight starts anew.
    """
    cores = weight.layer.cores
    held = {
        name: {slot: value for slot, value in state.items() if slot not in OURS}
        for name, state in states.items()
    }
    gradient = _lifted_gradient(weight)
    if not held or not all(_begun(state) for state in held.values()):
        known = any(_begun(state) for state in held.values())
        reason = "a core of it starts anew" if known else "the optimizer kept nothing of its cores"
        return replace(nothing(known, reason), gradient=gradient)
    parts = {name: form.read(state, cores[name], options) for name, state in held.items()}
    moving = {}
    common = set.intersection(*(set(part) for part in parts.values()))
    grams = [form.grams(tuple(cores[name].shape), options) for name in parts]
    if any(grams) and not any(form.kinds[slot] is Kind.DIAGONAL for slot in common):
        common = set()  # a momentum alone would meet preconditioners of zero
    for slot in sorted(slot for slot in common if form.kinds[slot] in MOVING - {Kind.GRAM}):
        given = {
            name: weight.whole(name, parts[name][slot].to(_wide(parts[name][slot])))
            for name in parts
        }
        moving[slot] = weight.stored(_lifted(form.kinds[slot], weight, given))
    _floor(form, moving)
    first = weight.trainable[0]
    numbers = _numbers(form, states[first]) if moving else {}
    return DenseState(moving, numbers, gradient, True, _types(held[first], cores[first]))


def densified(form: Form, dense: DenseState, plain: nn.Parameter, options: Group) -> dict[str, Any]:
    """Return the whole state of a dense parameter from what was lifted; empty where it is unsafe.

    Numbers such as the count of steps are kept with the moments they belong to, or not at all.
    """
    if not dense.moving:
        return {}
    typed = {
        slot: value.to(dense.types.get(slot, plain.dtype)) for slot, value in dense.moving.items()
    }
    written = form.write(typed, plain, options)
    if not written:
        return {}
    return form.initial(plain, options) | dict(dense.numbers) | written


def pulled(kind: Kind, weight: Cored, stored: Tensor) -> dict[str, Tensor]:
    """Return a dense slot moved to every trainable core, in the shape that the core stores."""
    device = next(iter(weight.cores.values())).device
    mapped = weight.mapped(stored).to(device, _wide(stored))
    transport = weight.transport
    if kind is Kind.COVECTOR:
        found = transport.pull(mapped)
    elif kind is Kind.DIAGONAL:
        found = transport.pull_squared(mapped)
    else:
        squares = transport.pull_squared(mapped.square())
        found = {name: value.clamp_min(0).sqrt() for name, value in squares.items()}
    return {
        name: weight.kept(name, value.clamp_min(0) if kind is not Kind.COVECTOR else value)
        for name, value in found.items()
        if name in weight.trainable
    }


def _lifted_gradient(weight: Cored) -> Tensor | None:
    cores = {name: weight.layer.cores[name] for name in weight.trainable}
    if all(core.grad is None for core in cores.values()):
        return None
    whole = {
        name: weight.whole(name, torch.zeros_like(core) if core.grad is None else core.grad)
        for name, core in cores.items()
    }
    return weight.stored(weight.transport.lift(whole))


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


def _begun(held: Mapping[str, Any]) -> bool:
    """Whether the optimizer has taken a step: a state may be whole before the first."""
    return bool(held) and ("step" not in held or float(held["step"]) > 0)


def _numbers(form: Form, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scalars, and what is left of warming up, where something is."""
    warm = (LEFT, STEPS) if state.get(LEFT) else ()
    return {
        slot: value.clone() if isinstance(value, Tensor) else value
        for slot, value in state.items()
        if form.kinds.get(slot) is Kind.SCALAR or slot in warm
    }


def _types(held: Mapping[str, Any], parameter: Tensor) -> dict[str, torch.dtype]:
    """Return the types of slots that are not kept in their parameter's."""
    return {
        slot: value.dtype
        for slot, value in held.items()
        if isinstance(value, Tensor) and value.dtype != parameter.dtype
    }


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
