"""Templates: an equation whose rank indices are still open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tnc.derive.cost import parameters
from tnc.errors import PlanError
from tnc.net import Equation, Network, Signature, Structure


@dataclass(frozen=True)
class Template:
    """An equation with leg sizes and, for each rank index, the maximum that is of use.

    At `bounds` the template represents every weight exactly, unless `exact` is false. `parts` are
    the terms of a sum, whose core and rank names differ; `equation` and `legs` are then those of
    the first.
    """

    signature: Signature
    equation: Equation
    legs: tuple[tuple[str, int], ...]
    bounds: tuple[tuple[str, int], ...]
    exact: bool = True
    parts: tuple[Template, ...] = ()

    @classmethod
    def sum(cls, parts: Sequence[Template]) -> Template:
        """Return the sum of templates of one signature; names that repeat are numbered.

        >>> from tnc.structures import families
        >>> low = families.get("low-rank")().template(Signature((4,), (8,)))
        >>> str(Template.sum([low, low]).at({"r": 2, "r_2": 1}))
        'B[o r] A[r i] : i -> o | i=8 o=4 r=2 + B_2[o r_2] A_2[r_2 i] : i -> o | i=8 o=4 r_2=1'
        """
        flat = [part for given in parts for part in (given.parts or (given,))]
        named = tuple(_numbered(part, flat[:place]) for place, part in enumerate(flat))
        bounds = tuple(pair for part in named for pair in part.bounds)
        exact = any(part.exact for part in named)
        first = named[0]
        return cls(first.signature, first.equation, first.legs, bounds, exact, named)

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
        terms = []
        for part in self.parts or (self,):
            own = {name: ranks[name] for name, _ in part.bounds}
            terms.append(Network.of(part.equation, {**dict(part.legs), **own}))
        return Structure.of(*terms, signature=self.signature)

    def full(self) -> Structure:
        """Return the structure at its bounds."""
        return self.at(self.bound)

    def scaled(self, fraction: float, round_to: int = 1) -> dict[str, int]:
        """Return ranks at a fraction of their bounds, rounded down to multiples where large."""
        return {name: _snap(fraction * top, top, round_to) for name, top in self.bounds}

    def within(self, params: int, round_to: int = 1) -> dict[str, int] | None:
        """Return the largest evenly scaled ranks of at most `params` parameters; None if none.

        The terms of a sum share the parameters equally.
        """
        if self.parts:
            return self.shared([params // len(self.parts)] * len(self.parts), round_to)
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

    def shared(self, params: Sequence[int], round_to: int = 1) -> dict[str, int] | None:
        """Return ranks of a sum whose terms have at most `params` parameters each; None if none."""
        found: dict[str, int] = {}
        for part, limit in zip(self.parts, params):
            ranks = part.within(limit, round_to)
            if ranks is None:
                return None
            found |= ranks
        return found


def _numbered(part: Template, before: Sequence[Template]) -> Template:
    """Return a term of a sum with its number on every name that an earlier term uses otherwise."""
    if not before:
        return part
    number = len(before) + 1
    cores = {core.name for other in before for core in other.equation.cores}
    legs = {pair for other in before for pair in other.legs}
    taken = {name for other in before for name in other.equation.names}
    ranks = {name for name, _ in part.bounds}
    own = dict(part.legs)
    names = {
        name: f"{name}_{number}"
        for name in part.equation.names
        if name in taken and (name in ranks or (name, own.get(name)) not in legs)
    }
    equation = part.equation.renamed(
        {c.name: f"{c.name}_{number}" for c in part.equation.cores if c.name in cores}, names
    )
    return replace(
        part,
        equation=equation,
        legs=tuple((names.get(name, name), size) for name, size in part.legs),
        bounds=tuple((names.get(name, name), top) for name, top in part.bounds),
    )


def _snap(value: float, top: int, round_to: int) -> int:
    rank = int(value + 1e-9)
    if rank > round_to:
        rank -= rank % round_to
    return max(1, min(top, rank))
