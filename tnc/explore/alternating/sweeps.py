"""Run the plan of a topology: every sweep of a fit, or every step, inside one compiled call."""

from __future__ import annotations

from functools import partial

import numpy as np

from tnc.explore.alternating import by_numpy
from tnc.explore.alternating.compiled import NUMBA, compiled
from tnc.explore.alternating.plan import INNER, OTHER, OUTER, SOLVE

SMALL = 1 << 14
"""Multiply-adds below which loops are faster than a call of BLAS."""
HOLD = 1e-8
"""Of the mean of N's diagonal: how strongly a core is held where it is. It biases nothing, and no
direction of a core grows at once until what it adds cancels."""
MOST = 1e250
UP, DOWN = np.int64(1 << INNER), np.int64(1 << OUTER)
SWEEP = np.int64(1 << SOLVE | 1 << OUTER | 1 << INNER | 1 << OTHER)
"""Kinds of steps to be run, as bits: products that give P, those that give M, all. As np.int64,
so that numba compiles nothing twice for the sake of a constant."""
BEGIN = np.int64(0)


def _multiply(room, step, tables, scratch):
    """Contract two tensors: C[i, j] = sum_k X[rows[i] + deep[k]] Y[high[k] + columns[j]]."""
    m, q, n = step[4], step[5], step[6]
    rows, deep = tables[step[7] : step[7] + m], tables[step[8] : step[8] + q]
    high, columns = tables[step[9] : step[9] + q], tables[step[10] : step[10] + n]
    out = room[step[1] : step[1] + m * n]
    y = room[step[3] : step[3] + q * n]
    if step[12] != 1:
        y = room[scratch : scratch + q * n]
        for k in range(q):
            row = room[step[3] + high[k] :]
            into = y[k * n : k * n + n]
            for j in range(n):
                into[j] = row[columns[j]]
    if m * q * n < SMALL:
        for i in range(m):
            row = room[step[2] + rows[i] :]
            into = out[i * n : i * n + n]
            for j in range(n):
                into[j] = 0.0
            for k in range(q):
                value = row[deep[k]]
                other = y[k * n : k * n + n]
                for j in range(n):
                    into[j] += value * other[j]
        return
    x = room[step[2] : step[2] + m * q]
    if step[11] == 2:
        np.dot(x.reshape(q, m).T, y.reshape(q, n), out.reshape(m, n))
        return
    if step[11] == 0:
        x = room[scratch + q * n : scratch + q * n + m * q]
        for i in range(m):
            row = room[step[2] + rows[i] :]
            into = x[i * q : i * q + q]
            for k in range(q):
                into[k] = row[deep[k]]
    np.dot(x.reshape(m, q), y.reshape(q, n), out.reshape(m, n))


def _solve(room, step, tables, scratch, norm, shrink):
    """Solve `G (N + hold + ridge) = M + hold G` for one core; return the squared relative error.

    The ridge is `shrink` times the mean of N's diagonal. Rows of the Cholesky factor lie above the
    diagonal of the left side, `a`; `g` is solved in place.
    """
    core, gram, right, m, q = step[1], step[2], step[3], step[4], step[5]
    a = room[scratch : scratch + q * q].reshape(q, q)
    n = room[scratch + q * q : scratch + 2 * q * q].reshape(q, q)
    g = room[scratch + 2 * q * q : scratch + 2 * q * q + m * q].reshape(m, q)
    b = room[scratch + 2 * q * q + m * q : scratch + 2 * q * q + 2 * m * q].reshape(m, q)
    old = room[core : core + m * q].reshape(m, q)
    trace = 0.0
    for i in range(q):
        row = room[gram + tables[step[7] + i] :]
        for j in range(q):
            n[i, j] = row[tables[step[8] + j]]
        trace += n[i, i]
    for i in range(m):
        row = room[right + tables[step[9] + i] :]
        for j in range(q):
            b[i, j] = row[tables[step[10] + j]]
    hold, ridge = HOLD * trace / q + 1e-300, shrink * trace / q
    found = False
    while not found:
        if not 0.0 < hold <= MOST:
            return np.nan
        found = True
        for i in range(q):
            for j in range(i, q):
                a[i, j] = n[i, j]
            a[i, i] += hold + ridge
        for k in range(q):
            found = found and a[k, k] > 0.0
            if not found:
                break
            scale = 1.0 / np.sqrt(a[k, k])
            for j in range(k, q):
                a[k, j] *= scale
            for i in range(k + 1, q):
                value, row, into = a[k, i], a[k, i:], a[i, i:]
                for j in range(q - i):
                    into[j] -= value * row[j]
        if not found:
            hold *= 100.0
    error = norm
    for i in range(m):
        mine, theirs = g[i], b[i]
        for j in range(q):
            mine[j] = theirs[j] + hold * old[i, j]
        for j in range(q):
            mine[j] /= a[j, j]
            value, row, into = mine[j], a[j, j + 1 :], mine[j + 1 :]
            for k in range(q - j - 1):
                into[k] -= value * row[k]
        for j in range(q - 1, -1, -1):
            total = mine[j]
            for k in range(j + 1, q):
                total -= a[j, k] * mine[k]
            mine[j] = total / a[j, j]
        for j in range(q):
            total, row = 0.0, n[j]
            for k in range(q):
                total += row[k] * mine[k]
            error += mine[j] * (total - 2.0 * theirs[j])
        for j in range(q):
            old[i, j] = mine[j]
    return 0.0 if error < 0.0 else error / norm


if NUMBA:
    multiply, solve = compiled(_multiply), compiled(_solve)
else:
    multiply, solve = by_numpy.multiply, partial(by_numpy.solve, HOLD, MOST)


@compiled
def perform(room, steps, tables, first, last, kinds, scratch, norm, order, places, shrink):
    """Run the steps of some kinds; return the squared relative error after the last core solved.

    Every core but the next to be solved has norm 1 then, and that one holds the scale.
    """
    error, solved = np.inf, 0
    for number in range(first, last):
        step = steps[number]
        if not kinds >> step[0] & 1:
            continue
        if step[0] != SOLVE:
            multiply(room, step, tables, scratch)
            continue
        error = solve(room, step, tables, scratch, norm, shrink)
        solved += 1
        following = order[solved % len(order)]
        size = 0.0
        for k in range(step[1], step[1] + step[4] * step[5]):
            size += room[k] * room[k]
        size = np.sqrt(size)
        if size > 0.0:
            for k in range(step[1], step[1] + step[4] * step[5]):
                room[k] /= size
            for k in range(places[following], places[following + 1]):
                room[k] *= size
    return error


@compiled
def descend(room, steps, tables, marks, order, places, norm, cores,
            sweeps, anneal, stir, enough, gain, reach):  # fmt: skip
    """Sweep from `cores` and leave the best found there; return its error and the sweeps made.

    `shrink` falls from 1 to 1e-3 over the first `anneal` sweeps, so that directions of the cores
    come in by what they explain; that finds better minima. Then `stir` times what was there at
    first is added, since some directions have died, and there is no ridge from there on. All cores
    go on after every sweep by up to `reach` times what it changed; a sweep from there that ends
    above the best is undone. The end is at an error of `enough`, after `sweeps`, or when ten of
    them gain less than `gain` of the error.
    """
    before, swept, scratch = marks[0], marks[1], marks[4]
    here = room[places[0] : places[-1]]
    origin, earlier = cores.copy(), cores.copy()
    error, last, since = np.inf, np.inf, 0
    ahead, grown = 0.0, 0.5 * reach
    made, stale = 0, True
    for k in range(len(cores)):
        here[k] = cores[k]
    while made < sweeps:
        free = made >= anneal
        shrink = 0.0 if free else 1e-3 ** (made / anneal)
        if made == anneal and made > 0:
            error, stale = np.inf, True
            for v in range(len(order)):
                size = 0.0
                for k in range(places[v], places[v + 1]):
                    size += room[k] * room[k]
                size = stir * np.sqrt(size / (places[v + 1] - places[v]))
                for k in range(places[v], places[v + 1]):
                    room[k] += size * origin[k - places[0]]
        if stale:
            perform(room, steps, tables, BEGIN, before, SWEEP, scratch, norm, order, places, 0.0)
        found = perform(
            room, steps, tables, before, swept, SWEEP, scratch, norm, order, places, shrink
        )
        made += 1
        stale = free and reach > 0.0
        if free and not found <= error:
            if ahead == 0.0:
                break
            grown *= 0.5
            ahead = 0.0
            for k in range(len(cores)):
                here[k] = cores[k]
            continue
        for k in range(len(cores)):
            earlier[k], cores[k] = cores[k], here[k]
        error = found
        if error <= enough:
            break
        if not free:
            continue
        since += 1
        if since == 10:
            if last - error <= gain * error:
                break
            last, since = error, 0
        if reach > 0.0:
            ahead = grown
            grown = min(reach, grown * 1.1)
            for k in range(len(cores)):
                here[k] += ahead * (cores[k] - earlier[k])
    return error, made


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
def follow(room, goal, steps, tables, marks, order, places, norm, cores, most, rate, enough):
    """Follow the gradient of the error from `cores`, by Adam (Kingma and Ba, 2015, algorithm 1).

    The error is the squared relative one. `goal` is the tensor, in whose place lies what is too
    much. The cores of the least error are left; returned are that error and the steps made, `most`
    of them unless one is at `enough`.
    """
    before, swept, number, scratch = marks[0], marks[1], marks[2], marks[4]
    entry = places[0]
    here = room[entry : places[-1]]
    first, second = np.zeros_like(cores), np.zeros_like(cores)
    built = room[steps[number - 1, 1] :]
    least = np.inf
    for k in range(len(cores)):
        here[k] = cores[k]
    for made in range(most + 1):
        perform(room, steps, tables, BEGIN, before, UP, scratch, norm, order, places, 0.0)
        perform(room, steps, tables, swept, number, UP, scratch, norm, order, places, 0.0)
        gap = room[: len(goal)]
        for k in range(len(goal)):
            gap[k] = built[k] - goal[k]
        error = np.dot(gap, gap) / norm
        if error < least:
            least = error
            for k in range(len(cores)):
                cores[k] = here[k]
        if least <= enough or made == most:
            break
        perform(room, steps, tables, before, swept, DOWN, scratch, norm, order, places, 0.0)
        for k in range(before, swept):
            if steps[k, 0] == SOLVE:
                move(room, steps[k], tables, entry, norm, first, second, made + 1, rate)
    return least, made
