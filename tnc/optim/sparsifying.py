"""The largest entries of every block of a vector, as places within the block and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 2**15
"""Blocks up to this long have places that fit int16."""

AT_ONCE = 2**22
"""How many places are widened to int64 at a time."""


@dataclass(frozen=True)
class Blocks:
    """How a vector of `size` entries is cut in blocks, and how many entries of each are kept.

    The last block may be shorter and keeps its own share, rounded up; every block keeps one.

    >>> Blocks.of(10, 4, 0.5)
    Blocks(size=10, block=4, kept=2, last=1)
    """

    size: int
    block: int
    kept: int
    last: int

    @classmethod
    def of(cls, size: int, block: int, density: float) -> Blocks:
        """Cut `size` entries in blocks of which `density` is kept."""
        block = max(1, min(block, size))
        rest = size % block
        return cls(size, block, _share(block, density), _share(rest, density) if rest else 0)

    @property
    def total(self) -> int:
        """How many entries are kept of all blocks."""
        return self.size // self.block * self.kept + self.last

    @property
    def places(self) -> torch.dtype:
        """The integers that hold places within a block."""
        return torch.int16 if self.block <= SMALL else torch.int32

    def largest(self, vector: Tensor) -> Tensor:
        """Return the places of the largest sizes within their blocks, `(total,)`."""
        whole = self.size // self.block
        sizes = vector.abs()
        cut = whole * self.block
        full = sizes[:cut].view(whole, self.block).topk(self.kept, dim=1, sorted=False).indices
        parts = [full.flatten()]
        if self.last:
            parts.append(sizes[cut:].topk(self.last, sorted=False).indices)
        return torch.cat(parts).to(self.places)

    def flat(self, places: Tensor) -> Tensor:
        """Return places in the vector, int64, of places within blocks `(..., total)`."""
        whole = self.size // self.block
        starts = torch.arange(whole, device=places.device).repeat_interleave(self.kept)
        starts = torch.cat([starts, starts.new_full((self.last,), whole)]) * self.block
        return places.long() + starts

    def dots(self, places: Tensor, values: Tensor, vector: Tensor) -> Tensor:
        """Return the inner products of sparse rows `(k, total)` with a vector, `(k,)`."""
        found = [
            (vector[self.flat(some)] * kept.to(vector)).sum(-1)
            for some, kept in zip(torch.split(places, self._rows), torch.split(values, self._rows))
        ]
        return torch.cat(found)

    def combine(self, places: Tensor, values: Tensor, weights: Tensor) -> Tensor:
        """Return the sum of sparse rows `(k, total)`, times weights `(k,)`, as a vector."""
        found = weights.new_zeros(self.size)
        parts = (torch.split(given, self._rows) for given in (places, values, weights))
        for some, kept, by in zip(*parts):
            scaled = kept.to(weights) * by[:, None]
            found.index_add_(0, self.flat(some).flatten(), scaled.flatten())
        return found

    @property
    def _rows(self) -> int:
        return max(1, AT_ONCE // self.total)


def _share(length: int, density: float) -> int:
    return min(length, max(1, round(density * length)))
