"""Orders of legs in memory: when two are one, and what a copy between two of them turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tnc.net import Axis


def same_memory(one: Axis, other: Axis, size: Mapping[str, int]) -> bool:
    """Whether two orders of legs are one order of memory."""
    return one == other or long_legs(one, size) == long_legs(other, size)


def long_legs(layout: Sequence[str], size: Mapping[str, int]) -> Axis:
    """Leave out legs of size 1: they have no place in memory."""
    return tuple([name for name in layout if size[name] != 1])


def halves(before: Axis, after: Axis) -> tuple[Axis, Axis] | None:
    """Return the legs of rows and columns where a copy turns a matrix; None for any other copy."""
    if not before or before[0] not in after:
        return None
    place = after.index(before[0])
    turned = (before[len(before) - place :], before[: len(before) - place])
    return (turned[1], turned[0]) if place and after == (*turned[0], *turned[1]) else None
