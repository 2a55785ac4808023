"""A step of a plan by numpy: what `sweeps` runs where numba is not installed."""

from __future__ import annotations

import numpy as np


def multiply(room, step, tables, scratch):
    """Contract two tensors; see `sweeps`."""
    _, out, x, y, m, q, n, tm, tk, uk, un, _, _ = (int(word) for word in step)
    left = room[x + tables[tm : tm + m, None] + tables[tk : tk + q]]
    right = room[y + tables[uk : uk + q, None] + tables[un : un + n]]
    room[out : out + m * n] = (left @ right).reshape(-1)


def solve(held, most, room, step, tables, scratch, norm, shrink):
    """Solve for one core as `sweeps` does, with its `HOLD` and `MOST`; return the error."""
    _, core, gram, right, m, q, _, tn, tp, tm, tb, _, _ = (int(word) for word in step)
    n = room[gram + tables[tn : tn + q, None] + tables[tp : tp + q]]
    b = room[right + tables[tm : tm + m, None] + tables[tb : tb + q]]
    hold, ridge = held * np.trace(n) / q + 1e-300, shrink * np.trace(n) / q
    while True:
        if not 0.0 < hold <= most:
            return np.nan
        try:
            factor = np.linalg.cholesky(n + (hold + ridge) * np.eye(q))
            break
        except np.linalg.LinAlgError:
            hold *= 100.0
    rhs = b + hold * room[core : core + m * q].reshape(m, q)
    g = np.linalg.solve(factor.T, np.linalg.solve(factor, rhs.T)).T
    error = norm + float((g * (g @ n - 2.0 * b)).sum())
    room[core : core + m * q] = g.reshape(-1)
    return 0.0 if error < 0.0 else error / norm
