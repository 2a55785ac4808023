"""Templates: an equation whose rank indices are still open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from tnc.derive.cost import parameters
from tnc.errors import PlanError
from tnc.net import Equation, Network, Signature, Structure


@dataclass(frozen=True)
class Template:
    """An equation with leg sizes and, for each rank index, the maximum that is of use.

    At `bounds` the template represents every weight exactly, unless `exact` is false.
    """

    signature: Signature
    equation: Equation
    legs: tuple[tuple[str, int], ...]
    bounds: tuple[tuple[str, int], ...]
    exact: bool = True

    @cached_property
    def bound(self) -> dict[str, int]:
        """Useful maximum by rank index."""
        return dict(self.bounds)

    def at(self, ranks: Mapping[str, int]) -> Structure:
        """Return the structure at given ranks. Raises PlanError for unknown, missing or 0 ranks."""
        unknown = sorted(set(ranks) - set(self.bound))
        missing = sorted(set(self.bound) - set(ranks))
        if unknown or missing:
            raise PlanError(
                "ranks do not fit: "
                + ", ".join(
                    [f"no rank {n}" for n in unknown] + [f"{n} is missing" for n in missing]
                ),
                where=f"equation {self.equation}",
                hint=f"ranks are {', '.join(f'{n} (at most {b})' for n, b in self.bounds)}",
            )
        low = sorted(name for name, rank in ranks.items() if rank < 1)
        if low:
            raise PlanError(f"rank {low[0]} is {ranks[low[0]]}", where=f"equation {self.equation}")
        return Structure.of(
            Network.of(self.equation, {**dict(self.legs), **ranks}), signature=self.signature
        )

    def full(self) -> Structure:
        """Return the structure at its bounds."""
        return self.at(self.bound)

    def scaled(self, fraction: float, round_to: int = 1) -> dict[str, int]:
        """Return ranks at a fraction of their bounds, rounded down to multiples where large."""
        return {name: _snap(fraction * top, top, round_to) for name, top in self.bounds}

    def within(self, params: int, round_to: int = 1) -> dict[str, int] | None:
        """Return the largest evenly scaled ranks of at most `params` parameters; None if none."""
        low, high = 0.0, 1.0
        if parameters(self.at(self.scaled(low, round_to))) > params:
            return None
        if parameters(self.full()) <= params:
            return dict(self.bound)
        for _ in range(40):
            middle = (low + high) / 2
            fits = parameters(self.at(self.scaled(middle, round_to))) <= params
            low, high = (middle, high) if fits else (low, middle)
        return self.scaled(low, round_to)


def _snap(value: float, top: int, round_to: int) -> int:
    rank = int(value + 1e-9)
    if rank > round_to:
        rank -= rank % round_to
    return max(1, min(top, rank))
