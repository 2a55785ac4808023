"""What was chosen, in words and numbers, whatever the kind of layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """Another way, its seconds (measured: 0 where it was not timed), and in what it differs."""

    predicted: float
    measured: float
    flops: int
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """What people read of a choice; seconds, and FLOPs of the forward.

    `dense` are the predicted seconds of a dense layer. `steps` are lines with what is noted beside
    them, `used` says in one line how it runs, `figures` is more for programs that read it.
    """

    equation: str
    met: str
    manner: str
    used: str
    dtype: str
    threads: int
    device: str
    training: bool
    predicted: float
    measured: float
    dense: float
    flops: int
    dense_flops: int
    steps: tuple[tuple[str, str], ...]
    libraries: tuple[str, ...]
    contenders: tuple[Contender, ...]
    source: str
    name: str
    """What tells its file from others of one network."""
    prices: str
    """Whose prices predicted the times."""
    kept: tuple[str, ...] = ()
    """What is kept for the backward beside the input, and its bytes as a part of the input's."""
    kept_share: float = 0.0
    notes: tuple[str, ...] = ()
    """What could not take part, and why."""
    figures: Mapping[str, Any] = field(default_factory=dict)


class Explained(ABC):
    """A choice for a task that can be shown, and written down as data."""

    task: Any
    choice: Any

    @abstractmethod
    def shown(self) -> Shown:
        """Return what people read of it."""

    @abstractmethod
    def entry(self) -> dict[str, Any]:
        """Return task and choice as plain data."""

    @abstractmethod
    def again(self) -> bool:
        """Whether the cost model makes the same choice here."""


def counted(count: int, what: str) -> str:
    """Say a number of things: 1 row, 2 rows."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def us(seconds: float) -> str:
    """Write microseconds."""
    return f"{1e6 * seconds:,.1f} us"


def times(shown: Shown) -> str:
    """Write predicted and measured time."""
    measured = f", measured {us(shown.measured)}" if shown.measured else ""
    return f"predicted {us(shown.predicted)}{measured}"
