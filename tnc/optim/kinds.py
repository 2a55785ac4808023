"""Kinds of optimizer state: what a slot is decides how it moves when a weight becomes cores.

An optimizer class has a `Form`: the kind of every slot it keeps for a parameter, and how a slot
starts. Those of `torch.optim` are registered here; a rule of `tnc.optim` carries its own. A slot
of no known kind is an error and no guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Any]
Group = Mapping[str, Any]


class Kind(Enum):
    """How a slot of a weight's state moves to cores."""

    COVECTOR = "covector"
    """Linear in the gradient (a momentum): by `J^T`, exactly."""
    DIAGONAL = "diagonal"
    """Quadratic in the gradient, entry by entry (a second moment): by `(J * J)^T` and a scale."""
    MAGNITUDE = "magnitude"
    """The root of a diagonal (Adamax): its square moves, then the root is taken."""
    VECTOR = "vector"
    """Like the weight (an average of weights): fitted anew, which is not done: it starts anew."""
    CHANGE = "change"
    """Linear in the parameter's own changes (momentum after scaling): it starts anew."""
    SIZE = "size"
    """Sizes of the parameter's changes, never negative (Rprop's steps): it starts anew."""
    GRAM = "gram"
    """A Gram matrix of the gradient's modes (Shampoo): the rank side moves exactly."""
    SCALAR = "scalar"
    """A number: kept as long as the moments that belong to it are."""
    OPAQUE = "opaque"
    """Known to its own optimizer alone (a projector, codes): it starts anew."""


Starts = Callable[[Tensor, Group], Any]
"""How a slot starts, from its parameter and the group's options."""


def zeros(parameter: Tensor, group: Group) -> Tensor:
    """Return zeros of the parameter's shape, type and strides, as `torch.optim` makes them."""
    return torch.zeros_like(parameter, memory_format=torch.preserve_format)


def zero(parameter: Tensor, group: Group) -> Tensor:
    """Return the number of steps done by none: 0, as `torch.optim` keeps it."""
    return number(0.0, parameter, group)


def number(value: float, parameter: Tensor, group: Group) -> Tensor:
    """Return a number where and in the type in which `torch.optim` keeps its steps."""
    on_device = group.get("capturable") or group.get("fused")
    wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
    return torch.tensor(
        value,
        dtype=torch.float64 if wide else torch.float32,
        device=parameter.device if on_device else "cpu",
    )


@dataclass(frozen=True)
class Form:
    """The slots of an optimizer's state for one parameter.

    `kinds` by slot. A covector, diagonal or magnitude has the parameter's shape and starts at zero
    unless `starts` says otherwise; so does a number. `present` says when an optimizer keeps a slot
    that it does not always keep. `holds` says how many times the mean gradient a covector, or the
    mean squared gradient a diagonal is by now, so that probe gradients can give it its scale.
    `forgets` tells that averages are debiased by the count of steps: with a smaller count they give
    way sooner to what comes. `decoupled` tells whether weight decay
    shrinks the parameter itself, by group options. `refuses` says why a parameter cannot be
    trained. `eager` tells that the optimizer makes its state when it is built, and finds it there.
    """

    kinds: Mapping[str, Kind]
    starts: Mapping[str, Starts] = field(default_factory=dict)
    present: Mapping[str, Callable[[Tensor, Group], bool]] = field(default_factory=dict)
    holds: Mapping[str, Callable[[State, Group], float]] = field(default_factory=dict)
    decoupled: Callable[[Group], bool] = lambda group: False
    refuses: Callable[[Tensor, Group], str] = lambda parameter, group: ""
    forgets: bool = False
    eager: bool = False
    contiguous: bool = False

    def read(self, state: State, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """Return the slots that move, each of the parameter's shape."""
        return {
            slot: value
            for slot, value in state.items()
            if isinstance(value, Tensor) and self.kinds[slot] in MOVING
        }

    def write(self, moved: State, core: Tensor, group: Group) -> dict[str, Any]:
        """Return slots for a core from what moved to it."""
        return dict(moved)

    def grams(self, shape: tuple[int, ...], group: Group) -> Mapping[str, tuple[int, ...]]:
        """Return, by slot of kind GRAM, the axes of a parameter whose Gram matrix `read` gives.

        It is `[axes, axes]`, summed over the other axes. Those not named start anew.
        """
        return {}

    def initial(self, parameter: Tensor, group: Group) -> dict[str, Any]:
        """Return the whole state before the first step."""
        return {
            slot: self.start(slot, parameter, group)
            for slot in self.kinds
            if slot not in self.present or self.present[slot](parameter, group)
        }

    def start(self, slot: str, parameter: Tensor, group: Group) -> Any:
        """Return a slot as it is before the first step."""
        if slot in self.starts:
            return self.starts[slot](parameter, group)
        return (
            zero(parameter, group) if self.kinds[slot] is Kind.SCALAR else zeros(parameter, group)
        )


MOVING = frozenset({Kind.COVECTOR, Kind.DIAGONAL, Kind.MAGNITUDE, Kind.GRAM})
"""Kinds that move from a weight to its cores by contractions."""

OURS = frozenset({"decay_share", "warm_left", "warm_steps"})
"""What `tnc.bind` itself keeps in a core's state: see `tnc.optim.following`."""
