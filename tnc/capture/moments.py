"""Second moments, summed up over batches in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 1 << 14
PATCHES = 1 << 24


class MomentSum:
    """Sums of `x x^T` (or of its diagonal) and of x over rows: float32 products, float64 sums.

    `total` is (n, n), or (n,) where `diagonal`. Float64 rows are multiplied in float64.
    """

    def __init__(self, size: int, diagonal: bool) -> None:
        self.size, self.diagonal, self.rows = size, diagonal, 0
        self._square: Tensor | None = None
        self._sum: Tensor | None = None

    def add(self, x: Tensor, first: int = 0) -> None:
        """Add rows (r, k) that are the entries `first` to `first + k` of vectors of length n."""
        if self._square is None or self._sum is None:
            shape = (self.size,) if self.diagonal else (self.size, self.size)
            self._square = torch.zeros(shape, dtype=torch.float64, device=x.device)
            self._sum = torch.zeros(self.size, dtype=torch.float64, device=x.device)
        part = slice(first, first + x.shape[1])
        square = self._square[part] if self.diagonal else self._square[part, part]
        for rows in torch.split(x, CHUNK):
            rows = rows if rows.dtype == torch.float64 else rows.float()
            square += rows.square().sum(0) if self.diagonal else rows.T @ rows
            self._sum[part] += rows.sum(0)
        self.rows += len(x)

    def add_squares(self, squares: Tensor, rows: int) -> None:
        """Add a diagonal (n,) that was summed over rows elsewhere; their mean stays unknown."""
        squares = squares.double()
        self._square = squares if self._square is None else self._square + squares
        self.rows += rows

    def over(self, count: float) -> Tensor | None:
        """Return the sum of `x x^T` divided by a count, on the CPU; None where nothing came."""
        if self._square is None or not count:
            return None
        return (self._square / count).cpu()

    def mean(self) -> Tensor | None:
        """Return the mean row."""
        return None if self._sum is None or not self.rows else (self._sum / self.rows).cpu()


class Frequency:
    """Counts of the rows of a table that were looked up."""

    def __init__(self, size: int) -> None:
        self.counts = torch.zeros(size, dtype=torch.float64)

    def add(self, ids: Tensor) -> None:
        """Count the ids."""
        self.counts += torch.bincount(ids.flatten().cpu(), minlength=len(self.counts))

    def share(self) -> Tensor | None:
        """Return the share of every row of the table; None where nothing came."""
        total = self.counts.sum()
        return self.counts / total if total else None


def patches(
    x: Tensor, kernel: tuple[int, ...], options: Mapping[str, tuple[int, ...]]
) -> Iterator[Tensor]:
    """Yield the rows (pixels, i * prod(kernel)) that a convolution multiplies, some images a time.

    With `output_padding` it is a transposed one: every output pixel's inputs, with zeros between
    them, in the order of its kernel, which it meets from behind.
    """
    if "output_padding" in options:
        x = _spread(x, kernel, options)
        stride = (1,) * len(kernel)
    else:
        x = functional.pad(x, [p for p in reversed(options["padding"]) for _ in range(2)])
        stride = options["stride"]
    each = max(1, x[0].numel() * prod(kernel)) if len(x) else 1
    for images in torch.split(x, max(1, PATCHES // each)):
        rows = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
        for axis, (size, step, gap) in enumerate(zip(kernel, stride, options["dilation"])):
            rows = rows.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
        rows = rows.movedim(1, 1 + len(kernel)).flatten(1 + len(kernel)).flatten(0, len(kernel))
        if "output_padding" in options:
            turned = torch.unflatten(rows, 1, (-1, *kernel)).flip(list(range(2, 2 + len(kernel))))
            rows = turned.flatten(1)
        yield rows


def _spread(x: Tensor, kernel: tuple[int, ...], options: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Put zeros between and around the pixels, as a transposed convolution sees them."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], options["stride"])]
    wide = x.new_zeros(*x.shape[:2], *sizes)
    places: Any = (..., *(slice(None, None, s) for s in options["stride"]))
    wide[places] = x
    pad: list[int] = []
    for size, gap, padding, extra in zip(
        kernel, options["dilation"], options["padding"], options["output_padding"]
    ):
        edge = gap * (size - 1) - padding
        pad = [edge, edge + extra, *pad]
    return functional.pad(wide, pad)
