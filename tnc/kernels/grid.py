"""Seconds measured on a grid of sizes, read between its points by log-linear interpolation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import exp, log, prod

Place = tuple[int, int, float, float]


@dataclass(frozen=True, eq=False)
class Grid:
    """Seconds at every point of a grid: the logarithm is linear between the points in log sizes.

    Outside of the grid seconds grow in proportion to each size. `seconds` lists the points in
    row-major order of `axes`.

    >>> grid = Grid(((1, 16), (1, 4)), (1.0, 4.0, 16.0, 64.0))
    >>> [round(grid.at((4, 2)), 6), round(grid.at((16, 8)), 6)]
    [8.0, 128.0]
    """

    axes: tuple[tuple[int, ...], ...]
    seconds: tuple[float, ...]
    _logs: tuple[float, ...] = field(init=False, repr=False)
    _places: tuple[dict[int, Place], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.seconds) != prod(len(axis) for axis in self.axes):
            raise ValueError(f"{len(self.seconds)} times on a grid of {self.axes}")
        object.__setattr__(self, "_logs", tuple(log(value) for value in self.seconds))
        object.__setattr__(self, "_places", tuple({} for _ in self.axes))

    def at(self, sizes: Sequence[int]) -> float:
        """Return the seconds at sizes of at least 1, one for each axis."""
        return exp(self.log_at(sizes))

    def log_at(self, sizes: Sequence[int]) -> float:
        """Return the logarithm of the seconds at sizes."""
        places, beyond = [], 0.0
        for axis, size in enumerate(sizes):
            known = self._places[axis]
            place = known.get(size)
            if place is None:
                place = known[size] = self._place(axis, size)
            places.append(place)
            beyond += place[3]
        return beyond + _log_at(self._logs, places, 0, 0)

    def _place(self, axis: int, size: int) -> Place:
        """Return the offsets of the neighbours, the upper one's weight, and the log beyond."""
        points = self.axes[axis]
        stride = prod(len(other) for other in self.axes[axis + 1 :])
        if size <= points[0] or size >= points[-1]:
            index = 0 if size <= points[0] else len(points) - 1
            return index * stride, index * stride, 0.0, log(size / points[index])
        index = bisect_right(points, size) - 1
        share = log(size / points[index]) / log(points[index + 1] / points[index])
        return index * stride, (index + 1) * stride, share, 0.0


def _log_at(logs: tuple[float, ...], places: list[Place], axis: int, start: int) -> float:
    """Return the logarithm at the places of this axis and the later ones, from an offset on."""
    low, high, share, _ = places[axis]
    left = len(places) - axis
    if left == 1:
        found = logs[start + low]
        return found + share * (logs[start + high] - found)
    if left == 2:
        return _log_between(logs, start, places[axis], places[axis + 1])
    found = _log_at(logs, places, axis + 1, start + low)
    if share:
        found += share * (_log_at(logs, places, axis + 1, start + high) - found)
    return found


def _log_between(logs: tuple[float, ...], start: int, outer: Place, inner: Place) -> float:
    """Return the logarithm at the places of the last two axes; a search asks this very often."""
    low, high, share, _ = inner
    near = start + outer[0]
    far = start + outer[1]
    found = logs[near + low]
    found += share * (logs[near + high] - found)
    other = logs[far + low]
    other += share * (logs[far + high] - other)
    return found + outer[2] * (other - found)


def filled(axes: tuple[tuple[int, ...], ...], seconds: Sequence[float | None]) -> Grid:
    """Return a grid whose unmeasured points (None) grow in proportion from a smaller neighbour.

    Of several neighbours the one with the best rate counts, as larger products have better ones.
    The point of the smallest sizes must have been measured.
    """
    known: dict[tuple[int, ...], float] = {}
    for point, value in zip(product(*(range(len(axis)) for axis in axes)), seconds, strict=True):
        known[point] = value if value is not None else _grown(axes, known, point)
    return Grid(axes, tuple(known.values()))


def _grown(
    axes: tuple[tuple[int, ...], ...],
    known: dict[tuple[int, ...], float],
    point: tuple[int, ...],
) -> float:
    found = []
    for axis, index in enumerate(point):
        if index:
            below = (*point[:axis], index - 1, *point[axis + 1 :])
            found.append(known[below] * axes[axis][index] / axes[axis][index - 1])
    return min(found)
