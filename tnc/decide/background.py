"""What a plan was chosen from: plain numbers for reports, no part of the decision.

Nothing here enters a plan's digest, and a plan without it is complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Curve:
    """The sizes that one family offered for a site, smallest first.

    `ranks` names the rank indices. Each point is (parameters, FLOPs, predicted error in the unit of
    the objective, relative error of the layer, then one number for each rank).
    """

    site: str
    family: str
    ranks: tuple[str, ...]
    points: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Part:
    """A module with parameters of its own: how many, and the FLOPs of its weights.

    `name` is its path, `kind` its class; FLOPs are of the example input.
    """

    name: str
    kind: str
    params: int
    flops: int


@dataclass(frozen=True)
class Background:
    """Everything that a report shows and a plan does not decide.

    `frontier` holds (budget, predicted error) of the best plans at several budgets of `resource`,
    counted over the whole scope; `parts` are the model's modules in the order of execution.
    """

    curves: tuple[Curve, ...] = ()
    resource: str = ""
    frontier: tuple[tuple[float, float], ...] = ()
    parts: tuple[Part, ...] = ()


def thinned(points: Sequence[tuple[float, ...]], most: int) -> tuple[tuple[float, ...], ...]:
    """Return at most `most` points, the first, the last, and evenly spaced ones between.

    >>> thinned([(0,), (1,), (2,), (3,), (4,)], 3)
    ((0,), (2,), (4,))
    """
    if len(points) <= most:
        return tuple(points)
    places = sorted({round(k * (len(points) - 1) / (most - 1)) for k in range(most)})
    return tuple(points[place] for place in places)


def read_background(data: Mapping[str, Any] | None) -> Background:
    """Read what `dataclasses.asdict` wrote; plans of earlier versions have none."""
    if not data:
        return Background()
    return Background(
        curves=tuple(
            Curve(c["site"], c["family"], tuple(c["ranks"]), _pairs(c["points"]))
            for c in data["curves"]
        ),
        resource=data["resource"],
        frontier=_pairs(data["frontier"]),
        parts=tuple(Part(**part) for part in data["parts"]),
    )


def _pairs(rows: Any) -> Any:
    return tuple(tuple(row) for row in rows)
