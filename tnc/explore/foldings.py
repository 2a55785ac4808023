"""Foldings of a matrix as a search space: how each of its dimensions is cut into modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from itertools import combinations, product
from math import comb, prod
from random import Random

from tnc.explore.axes import Point, Value

Modes = tuple[int, ...]


@dataclass(frozen=True)
class Folding:
    """An ordered cut of a dimension into `parts` modes of 2 or more whose product it is."""

    name: str
    extent: int
    parts: int
    ordered = False

    @property
    def size(self) -> int:
        """The number of cuts with modes of 1 or more: an upper bound."""
        counts = (comb(power + self.parts - 1, power) for _, power in factors(self.extent))
        return prod(counts)

    def draw(self, rng: Random) -> Modes:
        """Return a cut that gives every prime to any mode, mostly without a mode of 1."""
        for _ in range(50):
            modes = [1] * self.parts
            for prime, power in factors(self.extent):
                for _ in range(power):
                    modes[rng.randrange(self.parts)] *= prime
            if min(modes) > 1:
                break
        return tuple(modes)

    def near(self, value: Value, radius: int) -> tuple[Modes, ...]:
        """Return a cut, then those one prime away, then those with two modes exchanged.

        >>> Folding("o", 12, 2).near((4, 3), 1)
        ((4, 3), (2, 6), (3, 4))
        """
        assert isinstance(value, tuple)
        found: dict[Modes, None] = {value: None}
        for a, b in product(range(self.parts), repeat=2):
            for prime, _ in factors(value[a]):
                modes = list(value)
                modes[a] //= prime
                modes[b] *= prime
                found.setdefault(tuple(modes))
        for a, b in combinations(range(self.parts), 2):
            modes = list(value)
            modes[a], modes[b] = modes[b], modes[a]
            found.setdefault(tuple(modes))
        return tuple(modes for modes in found if min(modes) > 1 or modes == value)

    def values(self) -> tuple[Modes, ...]:
        """Return all cuts without a mode of 1."""
        return tuple(_cuts(self.extent, self.parts))


@dataclass(frozen=True)
class Folded:
    """A candidate: a matrix under a folding, at the size that its ranks are fitted into."""

    outputs: Modes
    inputs: Modes
    ratio: float
    parameters: int

    @cached_property
    def key(self) -> str:
        """A digest of the folding."""
        return sha256(str(self).encode()).hexdigest()[:32]

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.outputs))} <- {'x'.join(map(str, self.inputs))}"


@dataclass(frozen=True)
class FoldingSpace:
    """All foldings of a matrix into `parts` pairs of modes; `size` tells what one costs.

    `size` returns the parameters of a folding at its largest ranks within the budget, 0 where no
    rank fits.
    """

    outputs: int
    inputs: int
    parts: int
    size: Callable[[Modes, Modes], int]

    @cached_property
    def axes(self) -> tuple[Folding, Folding]:
        """The folding of the outputs and that of the inputs."""
        return (
            Folding("outputs", self.outputs, self.parts),
            Folding("inputs", self.inputs, self.parts),
        )

    @property
    def points(self) -> int:
        """An upper bound of the number of foldings."""
        return prod(axis.size for axis in self.axes)

    def topology(self, point: Point) -> Folded:
        """Return the candidate at a point."""
        outputs, inputs = point
        assert isinstance(outputs, tuple) and isinstance(inputs, tuple)
        parameters = self.size(outputs, inputs)
        return Folded(outputs, inputs, parameters / (self.outputs * self.inputs), parameters)

    def refuses(self, candidate: Folded) -> str:
        """Return why a folding is not evaluated; empty when it is."""
        if min(*candidate.outputs, *candidate.inputs) < 2:
            return "a mode of size 1"
        return "" if candidate.parameters else "no rank fits the budget"

    def draw(self, rng: Random) -> Point:
        """Return any point."""
        return tuple(axis.draw(rng) for axis in self.axes)

    def allowed(
        self, rng: Random, draw: Callable[[], Point] | None = None, tries: int = 100
    ) -> Point:
        """Return a point that is not refused, or the last of `tries` draws."""
        for _ in range(tries):
            point = draw() if draw is not None else self.draw(rng)
            if not self.refuses(self.topology(point)):
                break
        return point

    def all(self) -> Iterator[Point]:
        """Yield every point."""
        return product(*(axis.values() for axis in self.axes))


@cache
def factors(number: int) -> tuple[tuple[int, int], ...]:
    """Return primes with their powers, ascending.

    >>> factors(384), factors(1)
    (((2, 7), (3, 1)), ())
    """
    found, prime = [], 2
    while number > 1:
        power = 0
        while number % prime == 0:
            number //= prime
            power += 1
        if power:
            found.append((prime, power))
        prime += 1
    return tuple(found)


def _cuts(extent: int, parts: int) -> Iterator[Modes]:
    if parts == 1:
        if extent > 1:
            yield (extent,)
        return
    for first in range(2, extent // 2 + 1):
        if extent % first == 0:
            for rest in _cuts(extent // first, parts - 1):
                yield (first, *rest)
