"""Run the plan of a topology: every start of a fit inside one compiled call."""

from __future__ import annotations

import numpy as np

from tnc.explore.alternating.compiled import NUMBA, compiled

SMALL = 1 << 14
"""Multiply-adds below which loops are faster than a call of BLAS."""
RIDGE = 1e-12
"""Of the mean of the diagonal, added to it; it holds a core where it is, and biases nothing."""


def _multiply(room, step, tables, scratch):
    """Contract two tensors: C[i, j] = sum_k X[tm[i] + tk[k]] Y[uk[k] + un[j]]."""
    m, q, n = step[4], step[5], step[6]
    result = room[step[1] : step[1] + m * n].reshape(m, n)
    if m * q * n < SMALL:
        y, ahead = step[3], n
        if step[12] != 1:
            y = scratch
            for k in range(q):
                base = step[3] + tables[step[9] + k]
                for j in range(n):
                    room[y + k * n + j] = room[base + tables[step[10] + j]]
        for i in range(m):
            row = step[2] + tables[step[7] + i]
            c = step[1] + i * n
            for j in range(n):
                room[c + j] = 0.0
            for k in range(q):
                value = room[row + tables[step[8] + k]]
                at = y + k * ahead
                for j in range(n):
                    room[c + j] += value * room[at + j]
        return
    x, y = step[2], step[3]
    if step[11] == 0:
        x = scratch
        for i in range(m):
            base = step[2] + tables[step[7] + i]
            for k in range(q):
                room[x + i * q + k] = room[base + tables[step[8] + k]]
    if step[12] == 0:
        y = scratch + m * q
        for k in range(q):
            base = step[3] + tables[step[9] + k]
            for j in range(n):
                room[y + k * n + j] = room[base + tables[step[10] + j]]
    flat_x, flat_y = room[x : x + m * q], room[y : y + q * n]
    if step[11] == 2:
        if step[12] == 2:
            result[:] = np.dot(flat_x.reshape(q, m).T, flat_y.reshape(n, q).T)
        else:
            np.dot(flat_x.reshape(q, m).T, flat_y.reshape(q, n), result)
    elif step[12] == 2:
        np.dot(flat_x.reshape(m, q), flat_y.reshape(n, q).T, result)
    else:
        np.dot(flat_x.reshape(m, q), flat_y.reshape(q, n), result)


def _multiply_by_numpy(room, step, tables, scratch):
    _, out, x, y, m, q, n, tm, tk, uk, un, _, _ = (int(word) for word in step)
    left = room[x + tables[tm : tm + m, None] + tables[tk : tk + q]]
    right = room[y + tables[uk : uk + q, None] + tables[un : un + n]]
    room[out : out + m * n] = (left @ right).reshape(-1)


def _substitute(a, b, q, m):
    """Overwrite the rows of `b` (m, q) by the solutions of `x a = b`; say whether a is positive."""
    if q > 32:
        b[:] = np.linalg.solve(a, np.ascontiguousarray(b.T)).T
        return True
    for j in range(q):
        pivot = a[j, j]
        for k in range(j):
            pivot -= a[j, k] * a[j, k]
        if not pivot > 0.0:
            return False
        pivot = np.sqrt(pivot)
        a[j, j] = pivot
        for i in range(j + 1, q):
            total = a[i, j]
            for k in range(j):
                total -= a[i, k] * a[j, k]
            a[i, j] = total / pivot
    for i in range(m):
        for j in range(q):
            total = b[i, j]
            for k in range(j):
                total -= a[j, k] * b[i, k]
            b[i, j] = total / a[j, j]
        for j in range(q - 1, -1, -1):
            total = b[i, j]
            for k in range(j + 1, q):
                total -= a[k, j] * b[i, k]
            b[i, j] = total / a[j, j]
    return True


def _solve(room, step, tables, scratch, norm):
    """Solve `G (N + ridge) = M + ridge G` for one core; return the squared relative error."""
    core, gram, right, m, q = step[1], step[2], step[3], step[4], step[5]
    a = room[scratch : scratch + q * q].reshape(q, q)
    n = room[scratch + q * q : scratch + 2 * q * q].reshape(q, q)
    g = room[scratch + 2 * q * q : scratch + 2 * q * q + m * q].reshape(m, q)
    b = room[scratch + 2 * q * q + m * q : scratch + 2 * q * q + 2 * m * q].reshape(m, q)
    old = room[core : core + m * q].reshape(m, q)
    trace = 0.0
    for i in range(q):
        base = gram + tables[step[7] + i]
        for j in range(q):
            n[i, j] = room[base + tables[step[8] + j]]
        trace += n[i, i]
    for i in range(m):
        base = right + tables[step[9] + i]
        for j in range(q):
            b[i, j] = room[base + tables[step[10] + j]]
    ridge = RIDGE * trace / q + 1e-300
    while True:
        a[:] = n
        for i in range(q):
            a[i, i] += ridge
        for i in range(m):
            for j in range(q):
                g[i, j] = b[i, j] + ridge * old[i, j]
        if _substitute(a, g, q, m):
            break
        ridge *= 100.0
    error = norm
    for i in range(m):
        for j in range(q):
            total = 0.0
            for k in range(q):
                total += n[j, k] * g[i, k]
            error += g[i, j] * (total - 2.0 * b[i, j])
            old[i, j] = g[i, j]
    return max(error, 0.0) / norm


def _solve_by_numpy(room, step, tables, scratch, norm):
    _, core, gram, right, m, q, _, tn, tp, tm, tb, _, _ = (int(word) for word in step)
    n = room[gram + tables[tn : tn + q, None] + tables[tp : tp + q]]
    b = room[right + tables[tm : tm + m, None] + tables[tb : tb + q]]
    old = room[core : core + m * q].reshape(m, q)
    ridge = RIDGE * np.trace(n) / q + 1e-300
    while True:
        try:
            factor = np.linalg.cholesky(n + ridge * np.eye(q))
            break
        except np.linalg.LinAlgError:
            ridge *= 100.0
    rhs = (b + ridge * old).T
    g = np.linalg.solve(factor.T, np.linalg.solve(factor, rhs)).T
    error = norm + float((g * (g @ n - 2.0 * b)).sum())
    old[:] = g
    return max(error, 0.0) / norm


if NUMBA:
    _substitute = compiled(_substitute)
    multiply, solve = compiled(_multiply), compiled(_solve)
else:
    multiply, solve = _multiply_by_numpy, _solve_by_numpy


@compiled
def prepare(room, steps, tables, first, last, scratch):
    """Run steps that only multiply."""
    for number in range(first, last):
        multiply(room, steps[number], tables, scratch)


@compiled
def sweep(room, steps, tables, first, last, scratch, norm, order, places):
    """Solve every core once; return the squared relative error.

    Every core but the next to be solved has norm 1, and that one holds the scale.
    """
    error, solved = np.inf, 0
    for number in range(first, last):
        step = steps[number]
        if step[0] == 0:
            multiply(room, step, tables, scratch)
            continue
        error = solve(room, step, tables, scratch, norm)
        following = order[(solved + 1) % len(order)]
        solved += 1
        core = room[step[1] : step[1] + step[4] * step[5]]
        size = np.sqrt((core * core).sum())
        if size > 0.0:
            core /= size
            room[places[following] : places[following + 1]] *= size
    return error


@compiled
def descend(room, steps, tables, marks, order, places, norm, cores, sweeps, enough, gain, reach):
    """Sweep from `cores` and leave the best found there; return its error and the sweeps made.

    Ends at an error of `enough`, after `sweeps`, or when ten of them gain less than `gain` of the
    error. Between sweeps all cores go on by up to `reach` times what the last one changed; a sweep
    from there that ends above the best is undone.
    """
    before, swept, scratch = marks[0], marks[1], marks[4]
    here = room[places[0] : places[-1]]
    here[:] = cores
    earlier = cores.copy()
    prepare(room, steps, tables, 0, before, scratch)
    error, last, since = np.inf, np.inf, 0
    ahead, grown = 0.0, 0.5 * reach
    made = 0
    while made < sweeps:
        found = sweep(room, steps, tables, before, swept, scratch, norm, order, places)
        made += 1
        if found > error and ahead > 0.0:
            grown *= 0.5
            ahead = 0.0
            here[:] = cores
            prepare(room, steps, tables, 0, before, scratch)
            continue
        earlier[:] = cores
        cores[:] = here
        error = found
        if error <= enough:
            break
        since += 1
        if since == 10:
            if last - error <= gain * error:
                break
            last, since = error, 0
        if reach > 0.0:
            ahead = grown
            grown = min(reach, grown * 1.1)
            here += ahead * (cores - earlier)
            prepare(room, steps, tables, 0, before, scratch)
    return error, made


@compiled
def rebuilt(room, steps, tables, marks, places, back, norm, cores):
    """Return the squared relative error of cores from the tensor that they are."""
    room[places[0] : places[-1]] = cores
    prepare(room, steps, tables, 0, marks[0], marks[4])
    prepare(room, steps, tables, marks[1], marks[2], marks[4])
    built = steps[marks[2] - 1, 1]
    gap = 0.0
    for k in range(len(back)):
        away = room[k] - room[built + back[k]]
        gap += away * away
    return gap / norm
