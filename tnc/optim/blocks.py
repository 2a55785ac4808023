"""A parameter as equal blocks, for preconditioners that are too large for whole axes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from tnc.derive.preconditioning import mode_gram, on_modes
from tnc.kernels.einsums import lower


@dataclass(frozen=True)
class Blocks:
    """How a shape is cut: modes are the `axes` longer than 1, each in `counts` parts of `sizes`.

    Parts are equal; the last is filled up with zeros, fewer than there are parts. A tensor in
    blocks has the shape `(count, *sizes)`, blocks in the order of their places.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of blocks."""
        return prod(self.counts)

    @property
    def modes(self) -> range:
        """The numbers of the modes."""
        return range(len(self.sizes))

    def cut(self, tensor: Tensor) -> Tensor:
        """Return a tensor in blocks: a view where there is one."""
        extents = [self.shape[axis] for axis in self.axes]
        whole = tensor.reshape(extents or [1])
        if self.count == 1:
            return whole.unsqueeze(0)
        pads: list[int] = []
        for size, count, part in zip(extents[::-1], self.counts[::-1], self.sizes[::-1]):
            pads += [0, count * part - size]
        whole = functional.pad(whole, pads) if any(pads) else whole
        parted = whole.reshape([n for pair in zip(self.counts, self.sizes) for n in pair])
        k = len(self.sizes)
        order = [*range(0, 2 * k, 2), *range(1, 2 * k, 2)]
        return parted.permute(order).reshape(self.count, *self.sizes)

    def join(self, blocks: Tensor) -> Tensor:
        """Return the tensor that is in blocks: the way back from `cut`."""
        if self.count == 1:
            return blocks.reshape(self.shape)
        k = len(self.sizes)
        parted = blocks.reshape(*self.counts, *self.sizes)
        order = [place for pair in zip(range(k), range(k, 2 * k)) for place in pair]
        whole = parted.permute(order).reshape([c * s for c, s in zip(self.counts, self.sizes)])
        for place, axis in enumerate(self.axes):
            whole = whole.narrow(place, 0, self.shape[axis])
        return whole.reshape(self.shape)

    def gram(self, blocks: Tensor, mode: int) -> Tensor:
        """Return `G_(mode) G_(mode)^T` of every block, `[count, size, size]`."""
        return lower(mode_gram((self.count, *self.sizes), mode)).run([blocks, blocks])

    def on_modes(self, blocks: Tensor, matrices: dict[int, Tensor]) -> Tensor:
        """Multiply matrices `[count, old, new]` onto modes, in the order of fewest FLOPs."""
        if not matrices:
            return blocks
        contraction = on_modes((self.count, *self.sizes), tuple(matrices))
        return lower(contraction).run([blocks, *matrices.values()])

    def whole_gram(self, grams: Tensor, mode: int) -> Tensor:
        """Return a mode's Gram matrix of the whole tensor; between blocks it is unknown: zero."""
        others = tuple(k for k in self.modes if k != mode)
        parts = grams.reshape(*self.counts, *grams.shape[-2:])
        parts = parts.sum(others) if others else parts
        size = self.shape[self.axes[mode]] if self.axes else 1
        found: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
        return found[:size, :size]

    def split_gram(self, whole: Tensor, mode: int) -> Tensor:
        """Return a mode's Gram matrix for every block, the same for blocks beside each other."""
        count, size = self.counts[mode], self.sizes[mode]
        short = count * size - len(whole)
        full = functional.pad(whole, [0, short, 0, short])
        parts = full.reshape(count, size, count, size).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        shape = [count if k == mode else 1 for k in self.modes]
        spread = parts.reshape(*shape, size, size) * (count / self.count)
        return spread.expand(*self.counts, size, size).reshape(self.count, size, size)


@lru_cache(maxsize=4096)
def blocks_of(shape: tuple[int, ...], largest: int) -> Blocks:
    """Cut a shape so that no part of an axis is longer than `largest`.

    >>> found = blocks_of((5, 1, 30), 16)
    >>> found.axes, found.counts, found.sizes
    ((0, 2), (1, 2), (5, 15))
    """
    axes = tuple(axis for axis, size in enumerate(shape) if size > 1)
    counts = tuple(-(-shape[axis] // largest) for axis in axes)
    sizes = tuple(-(-shape[axis] // count) for axis, count in zip(axes, counts))
    return Blocks(shape, axes, counts or (1,), sizes or (1,))
