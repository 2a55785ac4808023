"""Dividing samples into calibration and held-out, and into batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from tnc.errors import SourceError
from tnc.sources.source import Split

T = TypeVar("T")


def part_of(samples: Sequence[T], split: Split, count: int, held_out: int) -> Sequence[T]:
    """Return the first `count` samples for calibration, or the `held_out` that follow them.

    For training: all but those that are held out.

    >>> part_of("abcdef", "calibration", 4, 2), part_of("abcdef", "held-out", 4, 2)
    ('abcd', 'ef')

    Raises SourceError when there are too few.
    """
    if split not in ("calibration", "held-out", "training"):
        raise SourceError(f"no split {split!r}", hint="calibration, held-out or training")
    if len(samples) < count + held_out:
        raise SourceError(
            f"{count} + {held_out} samples are asked for, there are {len(samples)}",
            hint="lower samples or held_out",
        )
    if split == "training":
        return [*samples[:count], *samples[count + held_out :]]
    return samples[:count] if split == "calibration" else samples[count : count + held_out]


def in_batches(samples: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut samples into batches; the last may be smaller.

    >>> in_batches("abcde", 2)
    ['ab', 'cd', 'e']
    """
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def require_positive(**options: Any) -> None:
    """Raise SourceError for the first option that is below 1."""
    for name, value in options.items():
        if value < 1:
            raise SourceError(f"{name} is {value}", hint=f"give {name} of 1 or more")
