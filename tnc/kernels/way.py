"""How a program is run: what a choice settles beside the program."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """How a program is run: rows at a time (0: all), and the backend of every product."""

    tile: int = 0
    backends: tuple[str, ...] = ()
    single: bool = False
    """Whether there is one row only, as in a bucket of its own."""
    emitter: str = "torch"
    """What runs the steps: 'torch', or 'numba' for loops over a few rows without gradients."""
