"""Many points of a space at once: sizes and tails of all cuts as array operations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from tnc.explore.axes import Point
from tnc.explore.bounds import Spectra
from tnc.explore.evaluator import Array
from tnc.explore.space import Space

Flags = np.ndarray[Any, np.dtype[np.bool_]]


class Surface:
    """What is known of points without a fit, for thousands a second.

    A point is a row of logarithms of bonds, one for every pair of vertices, so that equal
    topologies have equal rows (but for the numbers of vertices without modes), one topology
    contains another where no entry is smaller, and the rank that a topology allows at a cut is the
    exponential of a sum, the least over all sides of vertices without modes.
    """

    def __init__(self, space: Space, spectra: Spectra) -> None:
        self.space, self.spectra = space, spectra
        order = len(space.modes)
        count = order + space.hidden
        self.pairs = tuple(combinations(range(count), 2))
        self._column = np.zeros((count, count), dtype=np.int64)
        for k, (a, b) in enumerate(self.pairs):
            self._column[a, b] = self._column[b, a] = k
        a, b = np.array(self.pairs).T[..., None]
        self._meets = np.zeros((len(self.pairs), count))
        self._meets[np.arange(len(a)), a[:, 0]] = self._meets[np.arange(len(b)), b[:, 0]] = 1.0
        cuts = np.array(spectra.cuts, dtype=np.int64)[None]
        self._crosses = []
        for mask in range(1 << space.hidden):
            sides = cuts | (mask << order)
            self._crosses.append((((sides >> a) ^ (sides >> b)) & 1).astype(np.float64))

    def rows(self, points: Sequence[Point]) -> Array:
        """Return the logarithms of bonds, (points, pairs)."""
        count = len(self.space.pairs)
        sizes = np.array([point[:count] for point in points], dtype=np.float64)
        a, b = np.array(self.space.pairs).T
        if self.space.places:
            order = np.array([point[-1] for point in points])
            fixed = np.arange(order.shape[1], order.shape[1] + self.space.hidden)
            order = np.hstack([order, np.broadcast_to(fixed, (len(points), len(fixed)))])
            columns = self._column[order[:, a], order[:, b]]
        else:
            columns = np.broadcast_to(self._column[a, b], sizes.shape)
        rows = np.zeros((len(points), len(self.pairs)))
        np.put_along_axis(rows, columns, np.log(sizes), axis=1)
        return rows

    def ratios(self, rows: Array) -> Array:
        """Return parameters over dense size, before any bond is narrowed."""
        sizes = np.ones(len(self._meets.T))
        sizes[: len(self.space.modes)] = self.space.modes
        found: Array = (np.exp(rows @ self._meets) * sizes).sum(axis=1) / sizes.prod()
        return found

    def tails(self, rows: Array) -> Array:
        """Return the tail at every cut, (points, cuts); its largest is a lower bound of `rse`."""
        least = np.min([rows @ crosses for crosses in self._crosses], axis=0)
        return self.spectra.at(np.rint(np.exp(np.minimum(least, 40.0))))


def contains(outer: Array, inner: Array) -> Flags:
    """Return whether every row of `outer` has no bond smaller than every row of `inner`."""
    found: Flags = np.all(outer[:, None, :] >= inner[None, :, :] - 1e-9, axis=2)
    return found
