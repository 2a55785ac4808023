"""True errors of core shapes: higher-order orthogonal iteration on a small HOSVD core."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

import numpy as np

from tnc.decide.packing.baselines import bang_for_buck, greedy
from tnc.decide.packing.energy import core_spectra, energy_table
from tnc.decide.packing.exact import pack_exact
from tnc.decide.packing.listing import rescore, shortlist
from tnc.decide.packing.problem import CoreShape, Floats, Packing

MOST = 6
"""Shapes of least truncated-HOSVD error that are iterated."""

ENLARGED = 2
"""How many times a shape's ranks the HOSVD core keeps for the iteration."""


def choose_by_iteration(core: Floats, sizes: Sequence[int], budget: int) -> CoreShape:
    """Return the core shape of least true Tucker error found within a budget.

    A short list (exact packing, bang-for-buck, greedy, and the best of the energy table of all
    shapes) is rescored by orthogonal iteration on the part of the HOSVD `core` that matters; from
    the best, ranks are exchanged between modes as long as the error falls. The answer's `error` is
    ||X - X'||^2 / ||X||^2. Raises InfeasibleBudget.

    >>> choose_by_iteration(np.diag([2.0, 1.0, 0.5]), (3, 3), 16).ranks
    (2, 2)
    """
    problem = Packing(core_spectra(core), tuple(sizes), budget)
    listed = shortlist(problem, core=core, solvers=(pack_exact, bang_for_buck, greedy))
    known = {shape.ranks: shape for shape in listed}
    for ranks in _best_by_energy(core, problem, MOST):
        known.setdefault(ranks, problem.shape(ranks, "energy"))
    scored = rescore(known.values(), lambda ranks: iterated_error(core, ranks))
    return _exchanged(scored, problem, lambda ranks: iterated_error(core, ranks))


def iterated_error(core: Floats, ranks: Sequence[int], sweeps: int = 20) -> float:
    """Return the relative squared Tucker error after `sweeps` of orthogonal iteration.

    The start is the truncated HOSVD. `core` is the HOSVD core of the tensor; what lies beyond
    `ENLARGED` times the ranks (at least 8 more) counts as lost. Method: De Lathauwer et al., On
    the best rank-1 and rank-(R1, ..., RN) approximation, SIMAX 2000, algorithm 4.2.
    """
    total = float(np.vdot(core, core))
    if total == 0:
        return 0.0
    part = core[tuple(slice(max(ENLARGED * rank, rank + 8)) for rank in ranks)]
    bases = [np.eye(size, min(rank, size)) for size, rank in zip(part.shape, ranks)]
    kept = 0.0
    for _ in range(sweeps):
        for mode in range(part.ndim):
            small = part
            for other in range(part.ndim):
                if other != mode:
                    small = _times(small, bases[other].T, other)
            matrix = np.moveaxis(small, mode, 0).reshape(small.shape[mode], -1)
            values, vectors = np.linalg.eigh(matrix @ matrix.T)
            rank = bases[mode].shape[1]
            bases[mode], found = vectors[:, ::-1][:, :rank], float(values[::-1][:rank].sum())
        if found - kept <= 1e-12 * total:
            break
        kept = found
    return max(0.0, 1.0 - found / total)


def _exchanged(
    scored: Sequence[CoreShape], problem: Packing, error: Callable[[tuple[int, ...]], float]
) -> CoreShape:
    """Descend from the best of the list: one rank up, at the cost of another where it must be."""
    best, known = scored[0], {shape.ranks for shape in scored}
    while True:
        fresh = [ranks for ranks in _neighbours(best.ranks, problem) if ranks not in known]
        known.update(fresh)
        found = rescore((problem.shape(ranks, "exchange") for ranks in fresh), error)
        if not found or (found[0].error or 0.0) >= (best.error or 0.0):
            return best
        best = found[0]


def _neighbours(ranks: tuple[int, ...], problem: Packing) -> Iterator[tuple[int, ...]]:
    """Yield the allowed shapes with one rank raised, and another lowered if they need be."""
    for up, down in permutations(range(len(ranks)), 2):
        for lowered in (0, 1):
            step = list(ranks)
            step[up] += 1
            step[down] -= lowered
            if step[down] >= 1 and not problem.why_not(step):
                yield tuple(step)
                break


def _times(tensor: Floats, matrix: Floats, mode: int) -> Floats:
    return np.moveaxis(np.tensordot(matrix, tensor, axes=(1, mode)), 0, mode)


def _best_by_energy(core: Floats, problem: Packing, most: int) -> list[tuple[int, ...]]:
    """Return the allowed shapes of most truncated-HOSVD energy, those that fill the budget."""
    table = energy_table(core[tuple(slice(cap) for cap in problem.caps)])
    entries = np.ones(table.shape, dtype=np.int64)
    params = np.zeros(table.shape, dtype=np.int64)
    grids = np.ix_(*(np.arange(1, size + 1) for size in table.shape))
    for size, grid in zip(problem.sizes, grids):
        entries *= grid
        params += size * grid
    allowed = entries + params <= problem.budget
    for grid in grids:
        allowed &= grid**2 <= entries
    places = np.flatnonzero(allowed)
    energy = table.ravel()[places]
    best = places[np.argsort(-energy, kind="stable")[:most]]
    return [tuple(int(i) + 1 for i in np.unravel_index(place, table.shape)) for place in best]
