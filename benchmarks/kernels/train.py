"""Structured linear layers forward and backward, against the same rivals."""

from __future__ import annotations

from benchmarks.kernels import running
from benchmarks.outcome import Arguments, Outcome

NAME = "kernels-train"
ENVIRONMENT = running.MALLOC
DEVICES = ("cpu", "cuda")


def run(arguments: Arguments) -> Outcome:
    """Time every cell with the gradients of the input and of all cores."""
    return running.compare(arguments, train=True)
