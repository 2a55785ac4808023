"""What an optimizer will hold, worked out beside it and put in place at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.binding.report import Line
from tnc.binding.weights import Weights
from tnc.optim.forms import form_of
from tnc.optim.kinds import Form


@dataclass(frozen=True, eq=False)
class Spot:
    """Where an optimizer held a parameter: the group, and the place in it."""

    group: int
    place: int


@dataclass(frozen=True, eq=False)
class _Held:
    parameter: nn.Parameter
    spot: Spot
    line: Line


class Draft:
    """Groups, states, gradients and the report's lines of one binding.

    Nothing of the optimizer or of a model is changed before `commit`, and `commit` cannot fail:
    `finish` has made all that it puts in.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, before: Weights, after: Weights) -> None:
        self.optimizer = optimizer
        self.before, self.after = before, after
        self.gradients: dict[nn.Parameter, Tensor] = {}
        self.notes: list[str] = []
        self._held: dict[int, _Held] = {}
        self._states: dict[nn.Parameter, dict[str, Any]] = {}
        self._dropped: list[Line] = []
        self._groups: list[list[_Held]] = []

    def options(self, number: int) -> Mapping[str, Any]:
        """Return the options of a group."""
        return self.optimizer.param_groups[number]

    def form(self, number: int) -> Form:
        """Return the form of the state of a group's parameters."""
        return form_of(self.optimizer, self.optimizer.param_groups[number])

    def holds(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter has a place already."""
        return id(parameter) in self._held

    def keep(
        self,
        parameter: nn.Parameter,
        spot: Spot,
        line: Line,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Give a parameter a place in a group, with its state; without one it starts anew."""
        self._held[id(parameter)] = _Held(parameter, spot, line)
        if state:
            self._states[parameter] = dict(state)

    def drop(self, name: str, reason: str) -> None:
        """Note that a parameter is held no longer."""
        self._dropped.append(Line(name, name, "dropped", reason))

    def gather(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add to the gradient that a parameter has gathered so far."""
        known = self.gradients.get(parameter)
        self.gradients[parameter] = gradient if known is None else known + gradient

    @property
    def lines(self) -> tuple[Line, ...]:
        """The report's lines: in the order of the groups, then what was dropped."""
        return (*(held.line for group in self._groups for held in group), *self._dropped)

    def finish(self) -> None:
        """Bring groups into order, complete the states, and lay tensors out as parameters are."""
        count = len(self.optimizer.param_groups)
        self._groups = [self._ordered(number) for number in range(count)]
        for group in self._groups:
            for place, held in enumerate(group):
                self._complete(held, place)
        for parameter, gradient in self.gradients.items():
            self.gradients[parameter] = laid_out(gradient.to(parameter), parameter, Form({}))

    def commit(self) -> None:
        """Put groups, states and gradients in place."""
        for options, group in zip(self.optimizer.param_groups, self._groups):
            options["params"][:] = [held.parameter for held in group]
            if "param_names" in options:
                options["param_names"][:] = [held.line.parameter for held in group]
        self.optimizer.state.clear()
        for parameter, state in self._states.items():
            self.optimizer.state[parameter] = state
        for parameter, gradient in self.gradients.items():
            parameter.grad = gradient

    def _ordered(self, number: int) -> list[_Held]:
        """Order a group as the new model's parameters where it was in the order of the old one's.

        A state is loaded by place: a group that was `model.parameters()` is `made.parameters()`.
        Else what a parameter became stands where it stood; parameters of other models stay.
        """
        group = [held for held in self._held.values() if held.spot.group == number]
        old = self.optimizer.param_groups[number]["params"]
        known = [self.before.order[id(p)] for p in old if id(p) in self.before.order]
        in_order = known == sorted(known)
        first = next((k for k, p in enumerate(old) if id(p) in self.before.order), 0)

        def place(held: _Held) -> tuple[int, int, int]:
            position = self.after.order.get(id(held.parameter), -1)
            if not in_order:
                return (0, held.spot.place, position)
            if held.line.deed == "left":
                return (0 if held.spot.place < first else 2, held.spot.place, 0)
            return (1, position, 0)

        return sorted(group, key=place)

    def _complete(self, held: _Held, place: int) -> None:
        """Give a parameter its whole state: checkpoints take it that none is missing."""
        parameter, options = held.parameter, self.options(held.spot.group)
        state = self._states.get(parameter, {})
        form = self.form(held.spot.group)
        wanted = parameter.requires_grad or form.eager
        if not state and wanted and held.line.deed != "left":
            state = form.initial(parameter, options)
        if state and held.line.deed in ("new", "reset", "moved") and "seed" in state:
            state["seed"] = int(options.get("seed", 0)) + place
        if state:
            self._states[parameter] = {
                slot: laid_out(value, parameter, form) for slot, value in state.items()
            }


def laid_out(value: Any, parameter: nn.Parameter, form: Form) -> Any:
    """Return a tensor with the strides that `torch.optim` gives state of this parameter.

    A fused optimizer reads parameter, gradient and state by one address. What is no tensor of the
    parameter's shape is returned as it is, on the parameter's device. Rules keep theirs contiguous.
    """
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if hasattr(type(value), "__tensor_flatten__") and not hasattr(value, "full_tensor"):
        return value  # of a type of its optimizer's own, such as codes of 8 bits
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    if form.contiguous:
        return value.to(parameter.device).contiguous()
    like = torch.empty_like(parameter, dtype=value.dtype, memory_format=torch.preserve_format)
    if value.stride() == like.stride() and value.device == like.device:
        return value
    return like.copy_(value)
