"""Core shapes by the energy of the HOSVD core: the exact truncated-HOSVD error of all at once."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from tnc.decide.packing.problem import CoreShape, Floats, Ints, Packing
from tnc.errors import PlanError


def energy_table(core: Floats) -> Floats:
    """Sum the squared core up along every mode.

    table[R_1 - 1, ..., R_N - 1] = sum_{i_n <= R_n} core[i_1, ..., i_N]^2

    With G the HOSVD core of X (G = X x_n U_n^T, U_n all left singular vectors of unfolding n),
    ||X - X_R||^2 = ||X||^2 - table[R - 1] is the exact error of the truncated HOSVD X_R.
    Shape and units: as `core`, squared. Method: De Lathauwer et al., SIMAX 2000, property 10.

    >>> import numpy as np
    >>> energy_table(np.array([[2.0, 0.0], [0.0, 1.0]])).tolist()
    [[4.0, 4.0], [4.0, 5.0]]
    """
    table: Floats = np.array(core, dtype=np.float64)
    np.square(table, out=table)
    for axis in range(table.ndim):
        np.cumsum(table, axis=axis, out=table)
    return table


def core_spectra(core: Floats) -> tuple[Floats, ...]:
    """Read the squared singular values of all unfoldings off an HOSVD core, one array per mode.

    a_n[i] = sum of core^2 over the slice i of mode n (made descending against rounding).

    >>> import numpy as np
    >>> [a.tolist() for a in core_spectra(np.array([[2.0, 0.0], [0.0, 1.0]]))]
    [[4.0, 1.0], [4.0, 1.0]]
    """
    letters = "".join(chr(ord("a") + mode) for mode in range(core.ndim))
    sums: list[Floats] = [np.einsum(f"{letters},{letters}->{kept}", core, core) for kept in letters]
    return tuple(np.sort(energies)[::-1] for energies in sums)


def pack_by_energy(
    core: Floats, sizes: Sequence[int], budget: int, *, fixed: Sequence[int] = ()
) -> CoreShape:
    """Choose the core shape with the least truncated-HOSVD error within a budget.

    minimise ||X||^2 - table[R - 1]  subject to the constraints of `Packing`

    `core`: the HOSVD core of a tensor of the given mode `sizes` (each core size at most that; equal
    in the `fixed` modes, which need not be rotated). The answer's `error` is exact and relative,
    ||X - X_R||^2 / ||X||^2. Only the corner of the core within the budget is summed up.
    Ties: fewer parameters, then lower ranks. Raises PlanError, InfeasibleBudget.

    >>> import numpy as np
    >>> shape = pack_by_energy(np.diag([2.0, 1.0, 0.5]), (3, 3), 16)
    >>> shape.ranks, round(shape.error, 4)
    ((2, 2), 0.0476)
    """
    core = np.asarray(core, dtype=np.float64)
    problem = _problem(core, tuple(sizes), budget, tuple(fixed))
    table = energy_table(core[tuple(slice(cap) for cap in problem.caps)])
    total = float(np.vdot(core, core))
    ranks = _best_entry(problem, table, 1e-13 * total)
    kept = float(table[tuple(rank - 1 for rank in ranks)])
    error = max(0.0, 1.0 - kept / total) if total > 0 else 0.0
    return problem.shape(ranks, "energy", error)


def _problem(core: Floats, sizes: tuple[int, ...], budget: int, fixed: tuple[int, ...]) -> Packing:
    where = f"core of shape {core.shape} for a tensor of shape {sizes}"
    if core.ndim != len(sizes) or any(r > size for r, size in zip(core.shape, sizes)):
        raise PlanError(
            "the core does not fit the tensor",
            where=where,
            hint="give one size per mode, each at least the core's",
        )
    if any(core.shape[mode] != sizes[mode] for mode in fixed if mode < len(sizes)):
        raise PlanError(
            "a mode kept whole is cut in the core",
            where=where,
            hint="leave the fixed modes of the core as they are in the tensor",
        )
    return Packing(core_spectra(core), sizes, budget, fixed)


def _best_entry(problem: Packing, table: Floats, slack: float) -> tuple[int, ...]:
    """Scan the table slab by slab along its longest mode for the best shape allowed."""
    axis = max(range(table.ndim), key=lambda n: (table.shape[n], -n))
    lowest = [cap if mode in problem.fixed else 1 for mode, cap in enumerate(problem.caps)]
    spans = [np.arange(low, cap + 1) for low, cap in zip(lowest, problem.caps)]
    best: tuple[float, int, tuple[int, ...]] | None = None
    for rank in range(lowest[axis], problem.caps[axis] + 1):
        grids = np.ix_(*spans[:axis], np.array([rank]), *spans[axis + 1 :])
        slab = table[np.ix_(*(grid.ravel() - 1 for grid in grids))]
        entry = _best_in_slab(problem, grids, slab, slack)
        if entry is not None and (best is None or _precedes(entry, best, slack)):
            best = entry
    assert best is not None, "all ranks 1 are always allowed"
    return best[2]


def _best_in_slab(
    problem: Packing, grids: tuple[Ints, ...], slab: Floats, slack: float
) -> tuple[float, int, tuple[int, ...]] | None:
    entries = prod(grids[1:], start=grids[0])
    params = entries + sum(problem.sizes[mode] * grids[mode] for mode in problem.free)
    allowed = params <= problem.budget
    for mode in problem.free:
        allowed &= grids[mode] ** 2 <= entries
    if not allowed.any():
        return None
    energy = np.where(allowed, slab, -np.inf)
    near = energy >= energy.max() - slack
    count = np.where(near, params, np.iinfo(np.int64).max)
    index = np.unravel_index(int(np.argmin(count)), count.shape)
    ranks = tuple(int(grid.ravel()[i]) for grid, i in zip(grids, index))
    return float(slab[index]), int(params[index]), ranks


def _precedes(
    one: tuple[float, int, tuple[int, ...]], other: tuple[float, int, tuple[int, ...]], slack: float
) -> bool:
    if abs(one[0] - other[0]) > slack:
        return one[0] > other[0]
    return one[1:] < other[1:]
