"""What adapting a model found: plain numbers, ready to print, to compare, to write as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tnc.decide.adapter_plan import AdapterPlan

VERSION = 1

Figures = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ForPeft:
    """One adapter as it was written for PEFT: weights, and the largest relative error of one."""

    adapter: str
    folder: str
    weights: int
    error: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdaptReport:
    """One run: figures on held-out data of the base, with adapters, and after training.

    All figures are against the original model; `trained` is empty where nothing was trained, and
    `steps` then 0. `events` counts what the methods did to their deltas on the way. `gate` says why
    the quality gate stopped the run, `folder` where the adapters lie, empty when none were written.
    """

    plan: AdapterPlan
    base: str
    before: Figures
    attached: Figures
    trained: Figures
    held_out: int
    seconds: tuple[tuple[str, float], ...]
    spec: str
    steps: int = 0
    events: int = 0
    folder: str = ""
    gate: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    peft: tuple[ForPeft, ...] = ()

    @property
    def after(self) -> Figures:
        """The figures of what is written."""
        return self.trained or self.attached

    def as_json(self) -> dict[str, Any]:
        """Write the report as plain data; the plan whole, with its digest."""
        data = asdict(self) | {"plan": {"digest": self.plan.digest, **self.plan.to_json()}}
        for name in ("before", "attached", "trained", "seconds", "environment"):
            data[name] = dict(data[name])
        return {"version": VERSION, "kind": "adapt", **data}


@dataclass(frozen=True)
class MergeReport:
    """What merging found: how far outputs on the probe moved, and what rounding to 16 bits cost.

    `difference` is the largest absolute difference of an output of the merged model from that of
    base and adapters, `scale` the largest absolute output. `drift` is what rounding to the dtype of
    the base costs: the largest absolute difference of a merged entry from its value in float32 or
    wider, at the weight `drifted`, empty where there is none.
    """

    adapters: tuple[str, ...]
    weights: int
    difference: float
    scale: float
    drift: float
    drifted: str
    params: int
    folder: str = ""

    def as_json(self) -> dict[str, Any]:
        """Write the report as plain data."""
        return {"version": VERSION, "kind": "merge", **asdict(self)}
