"""The subject of a pipeline: what passes read and what they return."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from tnc.capture import Trace
from tnc.decide.plan import Plan
from tnc.rewrite.reparam import Reparam

if TYPE_CHECKING:
    from tnc.capture import Measurements


@dataclass(frozen=True)
class Subject:
    """A model on its way through the passes, with what is known about it.

    `ties` are groups of names of one parameter in the original. `model` belongs to the pipeline:
    the manager made the copy, a pass may edit it. `probe` is the example input (args, kwargs) on
    which contracts are checked. `original` is the model before it was rewritten, on the same
    batches. `room` bounds the bytes of activations that a pass keeps, where memory is short.
    """

    model: nn.Module
    trace: Trace
    probe: tuple[tuple[Any, ...], dict[str, Any]]
    plan: Plan | None = None
    measurements: Measurements | None = None
    batches: tuple[Any, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    reparams: tuple[Reparam, ...] = ()
    edits: tuple[str, ...] = field(default=())
    original: nn.Module | None = None
    room: int | None = None

    def edited(self, *lines: str, **changes: Any) -> Subject:
        """Return a subject with changes and one more line of edits for each thing done."""
        return replace(self, edits=self.edits + lines, **changes)


def ties_of(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Return the groups of parameter names that are one tensor."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)
