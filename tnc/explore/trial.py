"""What a strategy asks for and what it is told."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Any

from tnc.explore.axes import Point
from tnc.explore.topology import Topology


@dataclass(frozen=True)
class Trial:
    """One candidate to evaluate: where it is, with how much effort, from which fit it starts.

    `effort` is 1 for a full fit and less for a quick look (successive halving). `start` is the key
    of an earlier trial of this search whose cores, cut or widened, are one more start of the fit.
    `gates` above 0 is the threshold of a joint fit with sparse diagonal gates on every bond
    (`gating`), whose metrics tell how much of each bond is left.
    """

    point: Point
    topology: Topology
    effort: float = 1.0
    start: str = ""
    gates: float = 0.0

    @property
    def key(self) -> str:
        """A digest of what is evaluated: equal topologies at equal effort are evaluated once."""
        if self.effort == 1.0 and not self.start and not self.gates:
            return self.topology.key
        told = f"{self.topology} effort={self.effort:g} start={self.start}"
        if self.gates:
            told += f" gates={self.gates:g}"
        return sha256(told.encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        """Write as plain data; `from_json` reads it back."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return plain | {"topology": self.topology.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """Read what `to_json` wrote."""
        point = tuple(tuple(v) if isinstance(v, list) else v for v in data["point"])
        topology = Topology.from_json(data["topology"])
        return cls(**{**data, "point": point, "topology": topology})


@dataclass(frozen=True)
class Outcome:
    """What became of one trial: numbers by name, or the reason why there are none.

    `metrics` has at least `rse` (squared relative error), `ratio` (size over dense size) and
    `params`. `seconds` is what the fit took, `attempts` how often it was begun: more than once
    when a worker died. A `refused` trial was not fitted at all; of a `lost` one the engine had no
    answer, so that another try may have one.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    refused: bool = False
    seconds: float = 0.0
    attempts: int = 1
    lost: bool = False

    @property
    def ok(self) -> bool:
        """Whether there are metrics."""
        return not self.error


@dataclass(frozen=True)
class Scored:
    """A trial with its outcome and its score: the smaller the better, infinite when it failed."""

    trial: Trial
    outcome: Outcome
    score: float

    @property
    def rse(self) -> float:
        """The squared relative error, infinite when there is none."""
        return self.outcome.metrics.get("rse", float("inf"))


@dataclass(frozen=True)
class Batch:
    """Trials of one round, and how many more points their outcomes stand for (interpolated)."""

    trials: tuple[Trial, ...]
    interpolated: int = 0


Asking = Generator[Batch, tuple[Scored, ...], str]
"""A strategy at work: it yields batches, is sent what became of them in their order, and returns
why it ends."""
