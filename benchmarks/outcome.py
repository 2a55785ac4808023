"""What a benchmark gives back: a table, figures, and the goals that they are held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Arguments:
    """Hold what every benchmark is told: where data lie (None: nowhere), and to be quick.

    `minutes` of distillation are for the benchmarks that train; `checkpoint` is the folder from
    which such a run can be resumed. The kernel benchmarks take `only` (words that a cell's name
    must have), `threads`, `tune` (how kernels are chosen), `device` with dtypes parted by commas,
    and `compiled`, which lets torch.compile take part.
    """

    data: Path | None = None
    quick: bool = False
    minutes: float | None = None
    checkpoint: Path | None = None
    only: str | None = None
    threads: int = 1
    compiled: bool = False
    tune: str = "model"
    device: str = "cpu"
    dtype: str | None = None


@dataclass(frozen=True)
class Table:
    """Hold a table of text: one row of cells per line, as wide as its columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        lines = (self.columns, *self.rows)
        widths = [max(len(line[n]) for line in lines) for n in range(len(self.columns))]
        padded = ([cell.rjust(width) for cell, width in zip(line, widths)] for line in lines)
        return "\n".join(map("  ".join, padded))


@dataclass(frozen=True)
class Goal:
    """Hold one figure and what it must be: at most or at least `goal`."""

    figure: str
    value: float
    goal: float
    sense: Literal["at most", "at least"] = "at most"

    @property
    def met(self) -> bool:
        """Say whether the figure is good enough; NaN never is."""
        if self.sense == "at most":
            return self.value <= self.goal
        return self.value >= self.goal

    def line(self, name: str) -> str:
        """Print the goal as the last lines of a run do."""
        said = "ok" if self.met else "short"
        return f"{name}: {self.figure} {self.value:.9g} goal {self.goal:.9g} {said}"


@dataclass(frozen=True)
class Outcome:
    """Hold all that one benchmark found: tables to print, goals, and figures for the record."""

    tables: tuple[Table, ...]
    goals: tuple[Goal, ...]
    figures: Mapping[str, object] = field(default_factory=dict)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Make a table of any cells; floats get four significant digits."""
    return Table(tuple(columns), tuple(tuple(map(_cell, row)) for row in rows))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
