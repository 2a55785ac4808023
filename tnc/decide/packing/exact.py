"""Exact Tucker packing: enumerate all modes but one, close the last, cut by bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from tnc.decide.packing.baselines import bang_for_buck
from tnc.decide.packing.problem import CoreShape, Floats, Ints, Packing
from tnc.errors import PlanError

CHUNK = 1 << 16
"""Partial shapes held at once in one level of the enumeration."""


@dataclass(frozen=True)
class _Part:
    """Partial core shapes, each array (count,).

    `codes`: the ranks as one number in the mixed base of the caps; `largest`: the largest of
    them; `entries`: their product; `factors`: sum of factor sizes; `packed`: energy.
    """

    codes: Ints
    largest: Ints
    entries: Ints
    factors: Ints
    packed: Floats

    def take(self, keep: NDArray[np.bool_] | slice) -> _Part:
        return _Part(
            self.codes[keep],
            self.largest[keep],
            self.entries[keep],
            self.factors[keep],
            self.packed[keep],
        )


@dataclass
class _Search:
    """The incumbent and what the enumeration has cost so far."""

    problem: Packing
    order: tuple[int, ...]
    limit: int
    best: CoreShape
    slack: float
    seen: int = 0
    rest: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [self.problem.sizes[mode] for mode in self.order]
        if prod(self.problem.caps[mode] for mode in self.order) >> 62:
            self.count(self.limit + 1)
        self.rest = tuple(sum(sizes[depth:]) for depth in range(len(sizes) + 1))

    def count(self, shapes: int) -> None:
        self.seen += shapes
        if self.seen > self.limit:
            raise PlanError(
                f"exact packing looked at more than {self.limit} partial core shapes",
                where=f"tensor of shape {self.problem.sizes}, budget {self.problem.budget}",
                hint="raise the limit, or use pack_program or bang_for_buck",
            )


def pack_exact(problem: Packing, *, limit: int = 50_000_000) -> CoreShape:
    """Solve Tucker packing to optimality.

    All free modes but the one with most ranks are enumerated (vectorised, in chunks); given their
    product P and factor cost S the last rank is R = min(floor((c - S) / (P + I)), cap, P).
    Partial shapes whose energy plus the most that every open mode could add is below the
    incumbent (first that of bang-for-buck) are cut. Ties: fewer parameters, then lower ranks.

    Raises PlanError when more than `limit` partial shapes had to be looked at.
    Problem: Ghadiri et al., ICML 2023, section 3; the enumeration is ours.

    >>> import numpy as np
    >>> a = np.array([4.0, 2.0, 1.0])
    >>> pack_exact(Packing((a, a, a), (3, 3, 3), 30)).ranks
    (2, 2, 2)
    """
    if not problem.free:
        return problem.shape(problem.sizes, "exact")
    order = tuple(sorted(problem.free, key=lambda mode: (problem.caps[mode], mode)))
    start = bang_for_buck(problem)
    slack = 1e-12 * max(1e-300, problem.packed(problem.sizes))
    search = _Search(problem, order, limit, start, slack)
    closed = float(sum(problem.prefixes[mode][-1] for mode in problem.fixed))
    none = np.zeros(1, np.int64)
    root = _Part(none, none, np.array([problem.whole]), none, np.array([closed]))
    _descend(search, root, 0)
    return problem.shape(_trim(problem, search.best.ranks), "exact")


def _descend(search: _Search, part: _Part, depth: int) -> None:
    """Open the next mode for all partial shapes, chunk by chunk; close the last one."""
    if depth == len(search.order) - 1:
        _close(search, part)
        return
    width = search.problem.caps[search.order[depth]]
    step = max(1, CHUNK // width)
    for start in range(0, len(part.packed), step):
        chunk = part.take(slice(start, start + step))
        chunk = chunk.take(_promising(search, chunk, depth))
        if len(chunk.packed):
            opened = _open(search, chunk, depth)
            search.count(len(opened.packed))
            _descend(search, opened, depth + 1)


def _open(search: _Search, part: _Part, depth: int) -> _Part:
    """Give the mode at `depth` every rank that the budget allows with all later ranks at 1."""
    problem, mode = search.problem, search.order[depth]
    size, left = problem.sizes[mode], search.rest[depth + 1]
    most = np.minimum(
        (problem.budget - left - part.factors) // (part.entries + size), problem.caps[mode]
    )
    most = np.maximum(most, 0)
    rank = np.arange(1, most.sum() + 1) - np.repeat(np.cumsum(most) - most, most)
    return _Part(
        np.repeat(part.codes * problem.caps[mode] - 1, most) + rank,
        np.maximum(np.repeat(part.largest, most), rank),
        np.repeat(part.entries, most) * rank,
        np.repeat(part.factors, most) + size * rank,
        np.repeat(part.packed, most) + problem.prefixes[mode][rank],
    )


def _promising(search: _Search, part: _Part, depth: int) -> NDArray[np.bool_]:
    """Keep partial shapes that could still reach the incumbent, every open mode at its most."""
    problem = search.problem
    most = part.packed.copy()
    for mode in search.order[depth:]:
        others = search.rest[depth] - problem.sizes[mode]
        room = (problem.budget - others - part.factors) // (part.entries + problem.sizes[mode])
        most += problem.prefixes[mode][np.clip(room, 0, problem.caps[mode])]
    return np.asarray(most >= search.best.packed - search.slack)


def _close(search: _Search, part: _Part) -> None:
    """Give the last mode its largest rank, drop shapes out of bounds, keep the best."""
    problem, mode = search.problem, search.order[-1]
    size = problem.sizes[mode]
    last = np.minimum(
        (problem.budget - part.factors) // (part.entries + size),
        np.minimum(problem.caps[mode], part.entries),
    )
    packed = part.packed + problem.prefixes[mode][np.maximum(last, 0)]
    keep = (last >= 1) & (packed >= search.best.packed - search.slack)
    if not keep.any():
        return
    part, last, packed = part.take(keep), last[keep], packed[keep]
    entries = part.entries * last
    bounded = part.largest**2 <= entries
    if bounded.any():
        _keep_best(search, part.take(bounded), last[bounded], packed[bounded], entries[bounded])


def _keep_best(search: _Search, part: _Part, last: Ints, packed: Floats, entries: Ints) -> None:
    problem = search.problem
    near = packed >= packed.max() - search.slack
    part, last, entries = part.take(near), last[near], entries[near]
    params = part.factors + problem.sizes[search.order[-1]] * last + entries
    table = np.empty((len(last), len(problem.sizes)), np.int64)
    table[:] = problem.sizes
    table[:, search.order[-1]] = last
    codes = part.codes
    for mode in search.order[-2::-1]:
        codes, digit = np.divmod(codes, problem.caps[mode])
        table[:, mode] = digit + 1
    first = np.lexsort((*table.T[::-1], params))[0]
    found = problem.shape(tuple(table[first]), "exact")
    gain = found.packed - search.best.packed
    tied = gain >= -search.slack and (found.params, found.ranks) < (
        search.best.params,
        search.best.ranks,
    )
    if gain > search.slack or tied:
        search.best = found


def _trim(problem: Packing, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Lower ranks that pack nothing (zero singular values), as long as the bounds hold."""
    trimmed = list(ranks)
    for mode in problem.free:
        while trimmed[mode] > 1 and problem.spectra[mode][trimmed[mode] - 1] == 0.0:
            trimmed[mode] -= 1
            if problem.why_not(trimmed):
                trimmed[mode] += 1
                break
    return tuple(trimmed)
