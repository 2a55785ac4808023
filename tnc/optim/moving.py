"""Optimizer state that follows a parameter whose axes are changed linearly.

Slots have kinds (`tnc.optim.kinds`). A covector moves as the gradient does, exactly. A diagonal
moves by the squared map, which is exact for uncorrelated gradients; what the map leaves open, such
as a new row, takes the mean along the axis, never zero: Adam divides by it. Numbers stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import BindError
from tnc.optim.forms import form_of
from tnc.optim.kinds import OURS, Form, Kind

Maps = Mapping[int, Tensor]
"""For axes of a parameter, how its gradient moves: `[new size, old size]`, or the kept places.

Kept places are whole numbers `[new size]`: a selection, without its matrix.
"""

LINEAR = frozenset({Kind.COVECTOR, Kind.CHANGE})
SQUARED = frozenset({Kind.DIAGONAL, Kind.MAGNITUDE, Kind.SIZE})


def refusal(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> str:
    """Say why an optimizer cannot follow a parameter; empty when it can."""
    if isinstance(optimizer, torch.optim.LBFGS):
        return "LBFGS keeps its state flattened over all parameters"
    group = _group_of(optimizer, parameter)
    if group is None:
        return "the optimizer does not hold the parameter"
    try:
        form = form_of(optimizer, group)
    except BindError as error:
        return error.message
    for slot, value in optimizer.state.get(parameter, {}).items():
        if slot in OURS:
            continue
        if slot not in form.kinds:
            return f"{type(optimizer).__name__} keeps {slot!r}, whose kind is not known"
        if isinstance(value, Tensor) and value.numel() > 1:
            if form.kinds[slot] not in LINEAR | SQUARED:
                kind = form.kinds[slot].value
                return f"{type(optimizer).__name__} keeps {slot!r}, which is {kind}"
            if value.shape != parameter.shape:
                return f"{slot!r} has not the shape of its parameter"
        elif not isinstance(value, Tensor | int | float | bool | None):
            return f"{type(optimizer).__name__} keeps {slot!r}, a {type(value).__name__}"
    return ""


def move_(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, maps: Maps
) -> None:
    """Put `new` in the place of `old`, and move the state by `maps`; axes without one stay.

    `new` may be `old`, whose values were changed in place. Groups keep their order and options, so
    that learning rate schedulers go on. Raises BindError before anything is changed.
    """
    reason = refusal(optimizer, old)
    if reason:
        raise BindError(
            f"the optimizer cannot follow a core of shape {tuple(old.shape)}: {reason}",
            hint="use SGD, Adam, AdamW or another elementwise optimizer of torch.optim",
        )
    group = _group_of(optimizer, old)
    assert group is not None  # not refused
    form = form_of(optimizer, group)
    state = optimizer.state.get(old, {})
    moved = {slot: _moved(form, slot, value, maps) for slot, value in state.items()}
    for group in optimizer.param_groups:
        group["params"][:] = [new if p is old else p for p in group["params"]]
    optimizer.state.pop(old, None)
    if moved:
        optimizer.state[new] = moved


def _group_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any] | None:
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            return group
    return None


def _moved(form: Form, slot: str, value: Any, maps: Maps) -> Any:
    kind = form.kinds.get(slot)
    if not isinstance(value, Tensor) or value.dim() == 0 or kind not in LINEAR | SQUARED:
        return value
    for axis, matrix in maps.items():
        if not matrix.is_floating_point():
            value = value.index_select(axis, matrix.to(value.device))
            continue
        matrix = matrix.to(value)
        if kind in LINEAR:
            value = along(value, axis, matrix)
            continue
        squares = matrix.square()
        left = (1 - squares.sum(1)).clamp_min(0)
        shape = [-1 if k == axis else 1 for k in range(value.dim())]
        mean = value.mean(axis, keepdim=True)
        value = along(value, axis, squares) + left.reshape(shape) * mean
    return value.contiguous()


def along(tensor: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Multiply a matrix `[new, old]` onto one axis of a tensor."""
    found: Tensor = torch.tensordot(tensor, matrix, dims=([axis], [1]))
    return found.movedim(-1, axis)
