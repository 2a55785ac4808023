"""A compiled model, and what was done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tnc.capture import Measurements, Trace
from tnc.decide.plan import Plan
from tnc.rewrite.manager import Record
from tnc.rewrite.reparam import Reparam


@dataclass(frozen=True)
class Compiled:
    """A compiled model with the plan it follows and what was done.

    `records` holds one line of history for each pass, `reparams` what became of each weight, in a
    form that an optimizer can follow. `probe` is the example input, `classes` the modules of the
    original by path. `measurements` are those that the fits used.
    """

    model: nn.Module
    plan: Plan
    trace: Trace
    records: tuple[Record, ...]
    reparams: tuple[Reparam, ...]
    probe: tuple[tuple[Any, ...], dict[str, Any]]
    classes: Mapping[str, str]
    measurements: Measurements | None = None
