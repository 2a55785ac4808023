"""What kernels are chosen for ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tnc.errors import KernelError
from tnc.kernels.device import CPU

ROWS, IMAGES = (1, 32, 1024), (1, 16)


@dataclass(frozen=True)
class Given:
    """What layers will be given: numbers of rows, and of images, their dtype and device.

    Rows are vectors that a layer meets at once (batch x tokens); convolutions meet images. For
    training `keep` times the bytes of the input may be kept beside it. With `compile`, linear
    layers through `torch.compile` are timed as well.
    """

    rows: tuple[int, ...] = ROWS
    images: tuple[int, ...] = IMAGES
    training: bool = False
    keep: float = 0.0
    compile: bool = False
    dtype: torch.dtype = torch.float32
    device: str = CPU


def checked(counts: Sequence[int], what: str) -> tuple[int, ...]:
    """Return counts of rows or images. Raises KernelError unless all are positive whole numbers."""
    hint = "numbers of vectors that a layer meets at once, such as (1, 32, 1024)"
    if what == "images":
        hint = "numbers of images that a convolution meets at once, such as (1, 16)"
    for count in counts:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise KernelError(
                f"kernels cannot be chosen for {count!r} {what}", where=what, hint=hint
            )
    if not counts:
        raise KernelError(f"there are no {what} to choose kernels for", where=what, hint=hint)
    return tuple(counts)
