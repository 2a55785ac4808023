"""The multiple-choice knapsack as arrays: one choice per site, several rows to respect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

ROUNDING = 1e-9
"""Relative excess over a limit that counts as rounding of the sum, not as a violation."""


@dataclass(frozen=True, eq=False)
class Knapsack:
    """Choose one entry per site: minimise sum values subject to sum weights <= limits.

    min sum_s values[s, x_s]  s.t.  sum_s weights[s, x_s, m] <= limits[m] for every row m

    `values` (sites, choices), +inf where there is no choice; `weights` (sites, choices, rows), 0
    there; `limits` (rows,). Units are the caller's; `scaled` makes them comparable.
    """

    values: Floats
    weights: Floats
    limits: Floats

    @cached_property
    def open(self) -> Mask:
        """Mark the entries that may be chosen, (sites, choices)."""
        return np.isfinite(self.values)

    @cached_property
    def sites(self) -> Ints:
        """Number the sites, (sites,)."""
        return np.arange(len(self.values))

    def value(self, picks: Ints) -> float:
        """Add up the values of a selection."""
        return float(self.values[self.sites, picks].sum())

    def totals(self, picks: Ints) -> Floats:
        """Add up the weights of a selection, (rows,)."""
        totals: Floats = self.weights[self.sites, picks].sum(axis=0)
        return totals

    def fits(self, picks: Ints) -> bool:
        """Say whether a selection respects every limit, up to rounding."""
        return bool(np.all(self.totals(picks) <= self.limits + self.rounding))

    @cached_property
    def rounding(self) -> Floats:
        """Give the excess over each limit that counts as rounding, (rows,)."""
        return ROUNDING * np.abs(self.limits) + 1e-300

    def restrict(self, keep: Mask) -> Knapsack:
        """Close all entries outside of `keep`, (sites, choices)."""
        keep = keep & self.open
        return Knapsack(
            np.where(keep, self.values, np.inf),
            np.where(keep[:, :, None], self.weights, 0.0),
            self.limits,
        )

    def compact(self, keep: Mask) -> tuple[Knapsack, Ints]:
        """Move the entries of `keep` to the front of their sites and drop empty columns.

        The second result, (sites, columns), gives each entry's old place.
        """
        keep = keep & self.open
        width = int(keep.sum(axis=1).max(initial=0))
        places = np.argsort(~keep, axis=1, kind="stable")[:, :width]
        small = self.restrict(keep)
        rows = self.sites[:, None]
        return Knapsack(
            small.values[rows, places], small.weights[rows, places], self.limits
        ), places

    @cached_property
    def affordable(self) -> Mask:
        """Mark the entries that fit when all other sites take their least of each row.

        Nothing is marked where even the least of all sites exceeds a limit.
        """
        least = np.where(self.open[:, :, None], self.weights, np.inf).min(axis=1)
        room = self.limits + self.rounding - least.sum(axis=0)
        fits: Mask = np.all(self.weights - least[:, None, :] <= room, axis=2)
        return fits & self.open

    def ordered(self, picks: Ints) -> Ints:
        """Give the lower picks of equal sites to the earlier ones; value and totals stay."""
        picks, groups = picks.copy(), dict[bytes, list[int]]()
        for site, (values, weights) in enumerate(zip(self.values, self.weights)):
            groups.setdefault(values.tobytes() + weights.tobytes(), []).append(site)
        for group in groups.values():
            picks[group] = np.sort(picks[group])
        return picks

    @cached_property
    def undominated(self) -> Mask:
        """Mark the entries that no other of their site beats in value and in every row.

        Of equal entries the first stays. An optimal selection of marked entries exists.
        """
        keep = np.empty(self.values.shape, dtype=bool)
        columns = np.concatenate((self.values[:, :, None], self.weights), axis=2)
        choices = columns.shape[1]
        step = max(1, 2_000_000 // max(1, choices * choices))
        before = np.tri(choices, k=-1, dtype=bool)
        for start in range(0, len(columns), step):
            block = columns[start : start + step]
            alike = np.ones((len(block), choices, choices), dtype=bool)
            for column in np.moveaxis(block, 2, 0):
                alike &= column[:, None, :] <= column[:, :, None]
            strictly = alike & ~np.swapaxes(alike, 1, 2)
            equal_before = alike & np.swapaxes(alike, 1, 2) & before
            keep[start : start + step] = ~(strictly | equal_before).any(axis=2)
        return keep & self.open

    def scaled(self) -> tuple[Knapsack, float, float]:
        """Shift and scale values and rows to O(1); give the value of zero and of one back.

        Values become (v - min of the site) / scale with scale the sum of the sites' spans, so
        every selection is in [0, 1]; rows are divided by their limits (a limit next to 0: by the
        largest weight). The true value of a
        selection is offset + scale * scaled value.
        """
        lowest = self.values.min(axis=1)
        highest = np.where(self.open, self.values, -np.inf).max(axis=1)
        scale = float((highest - lowest).sum()) or 1.0
        largest = np.abs(self.weights).max(axis=(0, 1), initial=0.0)
        rows = np.where(np.abs(self.limits) > 1e-9 * largest, np.abs(self.limits), largest)
        rows = np.where(rows > 0, rows, 1.0)
        small = Knapsack(
            (self.values - lowest[:, None]) / scale, self.weights / rows, self.limits / rows
        )
        return small, float(lowest.sum()), scale


def from_choices(
    values: Sequence[Sequence[float]],
    weights: Sequence[Sequence[Sequence[float]]],
    limits: Sequence[float],
) -> Knapsack:
    """Pad ragged lists, per site and choice a value and one weight per row, to arrays.

    >>> from_choices([[1.0], [2.0, 3.0]], [[[4.0]], [[5.0], [6.0]]], [9.0]).values.tolist()
    [[1.0, inf], [2.0, 3.0]]
    """
    widths = np.array([len(row) for row in values], dtype=np.int64)
    most = int(widths.max(initial=0))
    is_open = np.arange(most) < widths[:, None]
    padded = np.full((len(values), most), np.inf)
    padded[is_open] = [value for row in values for value in row]
    rows = np.zeros((len(values), most, len(limits)))
    if len(limits):
        rows[is_open] = np.array([w for row in weights for w in row]).reshape(-1, len(limits))
    return Knapsack(padded, rows, np.array(limits, dtype=np.float64))
