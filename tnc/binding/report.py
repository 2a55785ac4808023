"""What binding did to every parameter, and why."""

from __future__ import annotations

from dataclasses import dataclass

DEEDS = ("carried", "moved", "reset", "new", "dropped", "left")


@dataclass(frozen=True)
class Line:
    """One parameter: what was done with its optimizer state, and why.

    `deed` is 'carried' (as it was), 'moved' (through the structure), 'reset' (starts anew), 'new'
    (there was no state), 'dropped' (the parameter is gone) or 'left' (not of the model). `ratio` is
    the energy of probe gradients over that of the second moment that moved; nan where neither is.
    """

    parameter: str
    weight: str
    deed: str
    reason: str
    ratio: float = float("nan")


@dataclass(frozen=True)
class Report:
    """What binding did: a line for every parameter, and notes on the whole."""

    optimizer: str
    policy: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def of(self, deed: str) -> tuple[Line, ...]:
        """Return the lines with one deed."""
        return tuple(line for line in self.lines if line.deed == deed)

    def __str__(self) -> str:
        counts = ", ".join(f"{len(found)} {deed}" for deed in DEEDS if (found := self.of(deed)))
        head = f"{self.optimizer}, policy {self.policy}: {counts}"
        changed = [line for line in self.lines if line.deed != "carried"]
        width = max((len(line.parameter) for line in changed), default=0)
        rows = [
            f"  {line.parameter:<{width}}  {line.deed:<7}  {line.reason}"
            + (f" (ratio {line.ratio:.3g})" if line.ratio == line.ratio else "")
            for line in changed
        ]
        return "\n".join([head, *rows, *(f"  note: {note}" for note in self.notes)])
