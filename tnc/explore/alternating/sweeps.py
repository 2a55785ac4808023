"""Run the plan of a topology: every start of a fit inside one compiled call."""

from __future__ import annotations

import numpy as np

from tnc.explore.alternating.compiled import NUMBA, compiled
from tnc.explore.alternating.plan import INNER, OUTER, SOLVE

SMALL = 1 << 14
"""Multiply-adds below which loops are faster than a call of BLAS."""
RIDGE = 1e-12
"""Of the mean of the diagonal, added to it; it holds a core where it is, and biases nothing."""


def _gather(room, at, rows, columns, m, n, out):
    """Lay a strided matrix down row by row; the tables say where its rows and columns are."""
    for i in range(m):
        row = room[at + rows[i] :]
        into = out[i * n : i * n + n]
        for j in range(n):
            into[j] = row[columns[j]]


def _multiply(room, step, tables, scratch):
    """Contract two tensors: C[i, j] = sum_k X[rows[i] + deep[k]] Y[high[k] + columns[j]]."""
    m, q, n = step[4], step[5], step[6]
    rows, deep = tables[step[7] : step[7] + m], tables[step[8] : step[8] + q]
    high, columns = tables[step[9] : step[9] + q], tables[step[10] : step[10] + n]
    out = room[step[1] : step[1] + m * n]
    x = room[step[2] : step[2] + m * q]
    y = room[step[3] : step[3] + q * n]
    spare = room[scratch : scratch + (m + n) * q]
    if m * q * n < SMALL:
        if step[12] != 1:
            y = spare[: q * n]
            gather(room, step[3], high, columns, q, n, y)
        for i in range(m):
            row = room[step[2] + rows[i] :]
            into = out[i * n : i * n + n]
            for j in range(n):
                into[j] = 0.0
            for k in range(q):
                value = row[deep[k]]
                from_y = y[k * n : k * n + n]
                for j in range(n):
                    into[j] += value * from_y[j]
        return
    if step[11] == 0:
        x = spare[: m * q]
        gather(room, step[2], rows, deep, m, q, x)
    if step[12] == 0:
        y = spare[m * q : (m + n) * q]
        gather(room, step[3], high, columns, q, n, y)
    if step[11] == 2:
        if step[12] == 2:
            np.dot(x.reshape(q, m).T, y.reshape(n, q).T, out.reshape(m, n))
        else:
            np.dot(x.reshape(q, m).T, y.reshape(q, n), out.reshape(m, n))
    elif step[12] == 2:
        np.dot(x.reshape(m, q), y.reshape(n, q).T, out.reshape(m, n))
    else:
        np.dot(x.reshape(m, q), y.reshape(q, n), out.reshape(m, n))


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
    gather = compiled(_gather)
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
        if step[0] != SOLVE:
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
def rebuilt(room, steps, tables, marks, places, norm, cores):
    """Return the squared relative error of cores from the tensor that they are."""
    room[places[0] : places[-1]] = cores
    prepare(room, steps, tables, 0, marks[0], marks[4])
    prepare(room, steps, tables, marks[1], marks[2], marks[4])
    built = steps[marks[2] - 1, 1]
    gap = 0.0
    for k in range(places[0]):
        away = room[k] - room[built + k]
        gap += away * away
    return gap / norm


@compiled
def move(room, step, tables, entry, norm, first, second, made, rate):
    """Make one step of Adam on a core, from what its M says of the gradient."""
    core, right, m, q = step[1], step[3], step[4], step[5]
    size = rate * np.sqrt(1.0 - 0.999**made) / (1.0 - 0.9**made)
    for i in range(m):
        base = right + tables[step[9] + i]
        for j in range(q):
            at = core + i * q + j
            slope = 2.0 * room[base + tables[step[10] + j]] / norm
            first[at - entry] += 0.1 * (slope - first[at - entry])
            second[at - entry] += 0.001 * (slope * slope - second[at - entry])
            room[at] -= size * first[at - entry] / (np.sqrt(second[at - entry]) + 1e-8)


@compiled
def follow(room, goal, steps, tables, marks, places, norm, cores, most, rate, enough):
    """Follow the gradient of the error from `cores`, by Adam (Kingma and Ba, 2015, algorithm 1).

    The error is the squared relative one. `goal` is the tensor, in whose place lies what is too
    much. The cores of the least error are left; returned are that error and the steps made, `most`
    of them unless one is at `enough`.
    """
    before, swept, number, scratch = marks[0], marks[1], marks[2], marks[4]
    entry = places[0]
    here = room[entry : places[-1]]
    here[:] = cores
    first, second = np.zeros_like(cores), np.zeros_like(cores)
    built = steps[number - 1, 1]
    least = np.inf
    for made in range(most + 1):
        for k in range(before):
            if steps[k, 0] == INNER:
                multiply(room, steps[k], tables, scratch)
        multiply(room, steps[number - 1], tables, scratch)
        total = 0.0
        for k in range(len(goal)):
            room[k] = room[built + k] - goal[k]
        total = np.dot(room[: len(goal)], room[: len(goal)])
        if total < least * norm:
            least = total / norm
            cores[:] = here
        if least <= enough or made == most:
            break
        for k in range(before, swept):
            if steps[k, 0] == OUTER:
                multiply(room, steps[k], tables, scratch)
        for k in range(before, swept):
            if steps[k, 0] == SOLVE:
                move(room, steps[k], tables, entry, norm, first, second, made + 1, rate)
    return least, made
