"""How a program is run: what a choice settles beside the program."""

from __future__ import annotations

from dataclasses import dataclass

SUMS = ("each", "flat", "batch")
"""How the gradient of an operand that a whole batch of products shares is summed: one product
after another into one place, one long product, or a batch of products and then their sum."""


@dataclass(frozen=True)
class Gradients:
    """How the gradients of one product are taken: a library each, and the sum of a batch."""

    input: str = ""
    operand: str = ""
    sum: str = ""
    """One of `SUMS` where a batch is summed."""
    turned: bool = False
    """Whether the operand's gradient is taken transposed, and handed on as a view."""


@dataclass(frozen=True)
class Back:
    """How the backward runs: rows at a time (0: all), values that the forward keeps for it.

    What is not kept is recomputed from what is, and from the input. Without `gradients` they are
    taken by the libraries of the forward.
    """

    tile: int = 0
    kept: tuple[str, ...] = ()
    gradients: tuple[Gradients, ...] = ()


@dataclass(frozen=True)
class Way:
    """How a program is run: rows at a time (0: all), and the backend of every product."""

    tile: int = 0
    backends: tuple[str, ...] = ()
    single: bool = False
    """Whether there is one row only, as in a bucket of its own."""
    emitter: str = "torch"
    """What runs the steps: 'torch', 'numba' for loops over a few rows without gradients, 'triton'
    for a chain of products as one kernel, `tile` rows a program; 'inductor' for the operands
    contracted by plain einsums, through `torch.compile`."""
    back: Back = Back()
    copies: str = "torch"
    """What copies into another order: 'torch', or 'numba' for the compiled copy."""
