"""What one run of a recipe found: plain numbers, ready to print, to compare, to write as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tnc.decide.plan import Plan

VERSION = 1


@dataclass(frozen=True)
class Size:
    """A model's parameters, bytes of parameters, and FLOPs of its weights on the example input."""

    params: int
    bytes: int
    flops: int


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of a forward pass at one batch size, before and after.

    `unreliable` says why they are not to be trusted: threads without a processor of their own, a
    busy machine. It is empty where nothing says so.
    """

    batch: int
    before: float
    after: float
    rounds: int
    unreliable: str = ""

    @property
    def speedup(self) -> float:
        """How many times faster the compiled model is."""
        return self.before / self.after if self.after else 0.0


@dataclass(frozen=True)
class RunReport:
    """One run: sizes and latency before and after, figures on held-out data, seconds by stage.

    `figures[0]` is the evaluation's own figure. `gate` says why the quality gate stopped the run,
    empty when it passed; `artifact` is where the compiled model lies, empty when none was written.
    """

    before: Size
    after: Size
    timings: tuple[Timing, ...]
    figures: tuple[tuple[str, float], ...]
    held_out: int
    seconds: tuple[tuple[str, float], ...]
    plan: Plan
    spec: str
    artifact: str = ""
    gate: str = ""
    exports: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Write the report as plain data; the plan is given by its digest."""
        data = asdict(self) | {"plan": self.plan.digest}
        for name in ("figures", "seconds", "environment"):
            data[name] = dict(data[name])
        return {"version": VERSION, "kind": "run", **data}
