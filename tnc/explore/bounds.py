"""What the spectra of a tensor's unfoldings say about every topology before anything is fitted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from tnc.explore.topology import Topology

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Spectra:
    """The singular values of a tensor at every cut of its modes in two.

    `tails[s][r]` is the share of the tensor's squared norm beyond the first r singular values of
    the unfolding whose rows are the modes in s. The unfolding of any network has at most the rank
    that is the least product of bonds between the two sides, so by Eckart and Young its squared
    relative error is at least that tail: `floor` is the largest of them over all cuts. Squares of
    singular values are eigenvalues of Gram matrices, good to about 1e-15 of the largest.
    """

    modes: tuple[int, ...]
    cuts: tuple[int, ...]
    tails: tuple[Array, ...]

    @classmethod
    def of(cls, tensor: Array, most: int = 2048) -> Spectra:
        """Measure all cuts, or the `most` with the fewest modes on a side."""
        modes = tensor.shape
        total = float(np.square(tensor, dtype=np.float64).sum()) or 1.0
        cuts: list[int] = []
        tails: list[Array] = []
        for side in _sides(len(modes)):
            if len(cuts) == most:
                break
            rest = [k for k in range(len(modes)) if k not in side]
            rows = int(np.prod([modes[k] for k in side], dtype=np.int64))
            unfolded = tensor.astype(np.float64).transpose(*side, *rest).reshape(rows, -1)
            if rows > unfolded.shape[1]:
                unfolded = unfolded.T
            squares = np.maximum(np.linalg.eigvalsh(unfolded @ unfolded.T)[::-1], 0.0)
            beyond = np.cumsum(squares[::-1])[::-1] / total
            cuts.append(sum(1 << k for k in side))
            tails.append(np.append(beyond, 0.0))
        return cls(tuple(modes), tuple(cuts), tuple(tails))

    def floor(self, topology: Topology) -> float:
        """Return a lower bound of the squared relative error of every fit of a topology."""
        return float(self.tail(topology).max(initial=0.0))

    def tail(self, topology: Topology) -> Array:
        """Return the tail at every cut, at the rank that the topology's bonds allow there."""
        if topology.hidden:
            ranks = np.min([self._ranks(topology, mask) for mask in _masks(topology)], axis=0)
        else:
            ranks = self._ranks(topology, 0)
        return self.at(ranks)

    def at(self, ranks: Array) -> Array:
        """Return the tails of all cuts at given ranks, (..., cuts)."""
        held = np.minimum(ranks, self._lengths - 1).astype(np.int64)
        found: Array = self._table[np.arange(len(self.cuts)), held]
        return found

    def _ranks(self, topology: Topology, inner: int) -> Array:
        """Return the product of cut bonds, with vertices without modes on the sides of `inner`."""
        sides = np.array(self.cuts, dtype=np.int64) | inner
        ranks = np.ones(len(self.cuts))
        for a, b, size in topology.bonds:
            crossed = ((sides >> a) ^ (sides >> b)) & 1
            ranks *= np.where(crossed == 1, float(size), 1.0)
        return ranks

    @cached_property
    def _lengths(self) -> Array:
        return np.array([len(tail) for tail in self.tails])

    @cached_property
    def _table(self) -> Array:
        wide = max(len(tail) for tail in self.tails)
        return np.array([np.pad(tail, (0, wide - len(tail))) for tail in self.tails])


def _sides(order: int) -> Iterator[tuple[int, ...]]:
    """Yield one side of every cut in two, those with few modes first."""
    for count in range(1, order // 2 + 1):
        for side in combinations(range(order), count):
            if 2 * count < order or 0 in side:
                yield side


def _masks(topology: Topology) -> Iterator[int]:
    """Yield every choice of a side for the vertices without modes."""
    for mask in range(1 << topology.hidden):
        yield mask << len(topology.modes)
