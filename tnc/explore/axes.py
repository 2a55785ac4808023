"""Axes of a search space: what one coordinate of a candidate may be, and what lies near it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations
from math import factorial
from random import Random

Value = int | str | tuple[int, ...]
"""A coordinate: a rank, the name of a choice, or an order of places."""
Point = tuple[Value, ...]
"""A candidate as its space's coordinates, one for each axis."""


@dataclass(frozen=True)
class Rank:
    """The size of a bond: every integer from `low` to `high`, 1 for no bond at all."""

    name: str
    high: int
    low: int = 1
    ordered = True

    @property
    def size(self) -> int:
        """The number of values."""
        return self.high - self.low + 1

    def draw(self, rng: Random) -> int:
        """Return any value, each as likely."""
        return rng.randint(self.low, self.high)

    def near(self, value: Value, radius: int) -> tuple[int, ...]:
        """Return a window of `2 radius + 1` values around one, pushed inside where it stands out.

        >>> Rank("r", 6).near(6, 1)
        (4, 5, 6)
        """
        assert isinstance(value, int)
        wide = min(2 * radius + 1, self.size)
        first = min(max(value - radius, self.low), self.high - wide + 1)
        return tuple(range(first, first + wide))

    def values(self) -> tuple[int, ...]:
        """Return all values, in order."""
        return tuple(range(self.low, self.high + 1))


@dataclass(frozen=True)
class Places:
    """Which mode sits at which place of the network: all orders of `length` modes."""

    name: str
    length: int
    ordered = False

    @property
    def size(self) -> int:
        """The number of orders."""
        return factorial(self.length)

    def draw(self, rng: Random) -> tuple[int, ...]:
        """Return any order, each as likely."""
        order = list(range(self.length))
        rng.shuffle(order)
        return tuple(order)

    def near(self, value: Value, radius: int) -> tuple[tuple[int, ...], ...]:
        """Return the order and all that one exchange of two places makes of it.

        >>> Places("order", 3).near((0, 1, 2), 1)
        ((0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1))
        """
        assert isinstance(value, tuple)
        found = [value]
        for a, b in combinations(range(self.length), 2):
            order = list(value)
            order[a], order[b] = order[b], order[a]
            found.append(tuple(order))
        return tuple(found)

    def values(self) -> tuple[tuple[int, ...], ...]:
        """Return all orders."""
        return tuple(permutations(range(self.length)))


@dataclass(frozen=True)
class Choice:
    """One of several things without an order: families of structures, foldings of a matrix."""

    name: str
    options: tuple[str, ...]
    ordered = False

    @property
    def size(self) -> int:
        """The number of options."""
        return len(self.options)

    def draw(self, rng: Random) -> str:
        """Return any option, each as likely."""
        return rng.choice(self.options)

    def near(self, value: Value, radius: int) -> tuple[str, ...]:
        """Return the option, then all others."""
        assert isinstance(value, str)
        return (value, *(option for option in self.options if option != value))

    def values(self) -> tuple[str, ...]:
        """Return all options."""
        return self.options


Axis = Rank | Places | Choice
