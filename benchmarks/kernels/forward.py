"""Structured linear layers forward, against tensorly-torch, einsum, dense and the roofline."""

from __future__ import annotations

from benchmarks.kernels import running
from benchmarks.outcome import Arguments, Outcome

NAME = "kernels"
ENVIRONMENT = running.MALLOC
DEVICES = ("cpu", "cuda")


def run(arguments: Arguments) -> Outcome:
    """Time every cell under no_grad."""
    return running.compare(arguments, train=False)
