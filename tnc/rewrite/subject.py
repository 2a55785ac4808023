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

    `model` belongs to the pipeline: the manager made the copy, a pass may edit it. `probe` is the
    example input (args, kwargs) on which contracts are checked.
    """

    model: nn.Module
    trace: Trace
    probe: tuple[tuple[Any, ...], dict[str, Any]]
    plan: Plan | None = None
    measurements: Measurements | None = None
    batches: tuple[Any, ...] = ()
    reparams: tuple[Reparam, ...] = ()
    edits: tuple[str, ...] = field(default=())

    def edited(self, *lines: str, **changes: Any) -> Subject:
        """Return a subject with changes and one more line of edits for each thing done."""
        return replace(self, edits=self.edits + lines, **changes)
