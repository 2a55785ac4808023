"""The plan of a sweep: a binary tree over the vertices, and the products that go up and down it.

For a set S of vertices let o(S) be the product of the bonds that leave it, d(S) that of its modes.
A node S of the tree holds

    P_S  the cores in S contracted                 d(S) o(S)      made from both children
    D_S  P_S with itself over its modes            o(S) o(S)      made from both children
    M_S  the tensor with all cores outside of S    d(S) o(S)      made from parent and sibling
    N_S  D of all that is outside of S             o(S) o(S)      made from parent and sibling

so that at a leaf the normal equations are `G N = M`, and one walk down and up the tree solves every
core once with everything else up to date. Where bonds are so many that N costs more than the
contracted cores outside of S, E_S of d(outside) o(S) entries, these are made in the place of D and
N, and N at the leaves alone. See `trees` for how the tree is chosen, `schedule` for the order.

Everything is integers: a step is a row of `WORDS` numbers with places in one flat array of float64,
and `tables` says where rows, columns and summed entries of its operands lie. So one compiled
function serves all topologies.
"""

from __future__ import annotations

import numpy as np

from tnc.explore.alternating.compiled import compiled
from tnc.explore.alternating.schedule import schedule
from tnc.explore.alternating.trees import tree

SOLVE, OUTER, INNER, OTHER = range(4)
"""Kinds of steps: a core is solved; products that give M, that give P, and all others."""
WORDS = 13
"""Of a product: kind, places of result, x, y, then m k n, places in `tables` of x (m, k) and of y
(k, n), then how x and y lie: 1 as a matrix (m k; k n), 2 as its transpose, 0 neither.
Of a solve: kind, places of core, N, M, then modes, bonds, -, places of N (bonds, bonds), M (modes,
bonds)."""


@compiled
def spread(wide, strides, count, table, at):
    """Write the place of every index of `count` legs, last fastest; return the end."""
    table[at] = 0
    filled = 1
    for place in range(count):
        for old in range(filled - 1, -1, -1):
            base = table[at + old]
            for k in range(wide[place] - 1, -1, -1):
                table[at + old * wide[place] + k] = base + k * strides[place]
        filled *= wide[place]
    return at + filled


@compiled
def lying(table, first, rows, second, columns):
    """Return 1 where two tables are those of a matrix, 2 of its transpose, 0 of neither."""
    plain = turned = True
    for k in range(rows):
        plain = plain and table[first + k] == k * columns
        turned = turned and table[first + k] == k
    for k in range(columns):
        plain = plain and table[second + k] == k
        turned = turned and table[second + k] == k * rows
    return 1 if plain else 2 if turned else 0


@compiled
def stride_of(size, legs, held, leg):
    """Return by how much an index of a leg counts, 0 where there is no such leg."""
    stride = 1
    for place in range(held - 1, -1, -1):
        if legs[place] == leg:
            return stride
        stride *= size[legs[place]]
    return 0


@compiled
def join(size, legs, held, x, y, out, row, tables, used):
    """Write the step that contracts two tensors over the legs that they share; return its end.

    The result has the free legs of x, then those of y.
    """
    wide = np.empty((3, legs.shape[1]), np.int64)
    strides = np.empty((4, legs.shape[1]), np.int64)
    counts = np.zeros(3, np.int64)
    sizes = np.ones(3, np.int64)
    total = 0
    for turn in range(2):
        mine, other = (x, y) if turn == 0 else (y, x)
        for place in range(held[mine]):
            leg = legs[mine, place]
            here = stride_of(size, legs[mine], held[mine], leg)
            there = stride_of(size, legs[other], held[other], leg)
            kind = 2 * turn if there == 0 else 1
            if kind == 1 and turn == 1:
                continue
            at = counts[kind]
            wide[kind, at] = size[leg]
            sizes[kind] *= size[leg]
            strides[kind, at] = here
            strides[3, at] = there if kind == 1 else strides[3, at]
            counts[kind] += 1
            if kind != 1:
                legs[out, total] = leg
                total += 1
    held[out] = total
    m, k, n = sizes
    row[4], row[5], row[6] = m, k, n
    row[7] = used
    row[8] = spread(wide[0], strides[0], counts[0], tables, row[7])
    row[9] = spread(wide[1], strides[1], counts[1], tables, row[8])
    row[10] = spread(wide[1], strides[3], counts[1], tables, row[9])
    end = spread(wide[2], strides[2], counts[2], tables, row[10])
    row[11] = lying(tables, row[7], m, row[8], k)
    row[12] = lying(tables, row[9], k, row[10], n)
    return end


@compiled
def solve(size, legs, held, vertex, core, gram, right, edges, row, tables, used):
    """Write the step that solves a core; return its end."""
    wide = np.empty(legs.shape[1], np.int64)
    strides = np.empty((4, legs.shape[1]), np.int64)
    count, total = 0, 1
    mode = np.array([size[vertex]])
    for place in range(held[core]):
        leg = legs[core, place]
        if leg == vertex:
            continue
        wide[count] = size[leg]
        total *= size[leg]
        strides[0, count] = stride_of(size, legs[gram], held[gram], leg)
        strides[1, count] = stride_of(size, legs[gram], held[gram], leg + edges)
        strides[3, count] = stride_of(size, legs[right], held[right], leg)
        count += 1
    strides[2, 0] = stride_of(size, legs[right], held[right], vertex)
    row[4], row[5] = size[vertex], total
    row[7] = used
    row[8] = spread(wide, strides[0], count, tables, row[7])
    row[9] = spread(wide, strides[1], count, tables, row[8])
    row[10] = spread(mode, strides[2], 1, tables, row[9])
    return spread(wide, strides[3], count, tables, row[10])


@compiled
def entries(size, legs, held):
    """Return the number of entries of a tensor."""
    total = 1
    for place in range(held):
        total *= size[legs[place]]
    return total


@compiled
def shared(size, legs, held, x, y):
    """Return the product of the legs that two tensors share."""
    total = 1
    for place in range(held[x]):
        if stride_of(size, legs[y], held[y], legs[x, place]) > 0:
            total *= size[legs[x, place]]
    return total


def plan(modes, bonds, most):
    """Return all that `sweeps` needs to know of a topology.

    `modes` has one entry for every vertex, 1 where it holds none; `bonds` are rows (a, b, size).
    Returned are `steps`, `tables`; `marks`: the numbers of steps before a sweep, to its end and of
    all (the last one rebuilds the tensor), the length of the flat array, where in it scratch memory
    begins, and the multiply-adds of a sweep; the order of the vertices in a sweep, which is that of
    the modes of the given tensor and of the rebuilt one; the place of every core, and of their end.
    A plan whose length comes to more than `most` is left unfinished.
    """
    children, outside = tree(modes, bonds)
    return laid_out(modes, bonds, most, *schedule(children, outside))


@compiled
def laid_out(modes, bonds, most, work, before, swept, todo):
    """Return what `plan` does, of products in order: where all that they read and write lies."""
    count, edges = len(modes), len(bonds)
    nodes = 2 * count - 1
    size = np.ones(count + 2 * edges, np.int64)
    for v in range(count):
        size[v] = modes[v]
    for b in range(edges):
        size[count + b] = size[count + edges + b] = bonds[b, 2]
    kinds = 1 + 6 * nodes
    legs = np.full((kinds, count + 2 * edges + 1), -1, np.int64)
    held = np.zeros(kinds, np.int64)
    offset = np.full(kinds, -1, np.int64)
    order = np.empty(count, np.int64)
    found = 0
    for k in range(before, swept):
        if work[k, 0] == 1:
            order[found] = work[k, 3] - 1
            found += 1
    offset[0] = 0
    for place in range(count):
        if modes[order[place]] > 1:
            legs[0, held[0]] = order[place]
            held[0] += 1
    room = entries(size, legs[0], held[0])
    places = np.empty(count + 1, np.int64)
    for v in range(count):
        for leg in range(count + edges):
            if leg < count:
                mine = leg == v and modes[v] > 1
            else:
                mine = bonds[leg - count, 0] == v or bonds[leg - count, 1] == v
            if mine:
                legs[1 + v, held[1 + v]] = leg
                held[1 + v] += 1
        offset[1 + v] = places[v] = room
        room += entries(size, legs[1 + v], held[1 + v])
    places[count] = room
    steps = np.zeros((todo, WORDS), np.int64)
    tables = np.zeros(4096, np.int64)
    number, used, scratch = 0, np.int64(0), 0
    marks = np.zeros(6, np.int64)
    for k in range(todo):
        if k == before:
            marks[0] = number
        if k == swept:
            marks[1] = number
        what, x, y, out = work[k]
        if what > 1:
            held[out], offset[out] = held[x], offset[x]
            for place in range(held[x]):
                leg = legs[x, place]
                legs[out, place] = leg + edges if what == 2 and leg >= count else leg
            continue
        both = shared(size, legs, held, x, y)
        rows = entries(size, legs[x], held[x]) // both
        columns = entries(size, legs[y], held[y]) // both
        more = rows + columns + 2 * both + 8
        if what == 0 and float(rows) * columns + room > most:
            marks[3] = np.int64(min(float(rows) * columns + room, 1e18))
            break
        if used + more > len(tables):
            grown = np.zeros(2 * len(tables) + more, np.int64)
            for place in range(used):
                grown[place] = tables[place]
            tables = grown
        row = steps[number]
        number += 1
        if what == 1:
            used = solve(
                size, legs, held, out - 1, out, x, y, edges, row, tables, used
            )  # fmt: skip
            row[0] = SOLVE
            scratch = max(scratch, 2 * row[5] * (row[4] + row[5]))
            marks[5] += row[5] * row[5] * row[5] // 6
        else:
            used = join(size, legs, held, x, y, out, row, tables, used)
            row[0] = OTHER
            if out < 1 + nodes:
                row[0] = INNER
            elif 1 + 2 * nodes <= out < 1 + 3 * nodes:
                row[0] = OUTER
            if offset[out] < 0:
                offset[out] = room
                room += row[4] * row[6]
            scratch = max(scratch, (row[4] + row[6]) * row[5])
            if before <= k < swept:
                marks[5] += row[4] * row[5] * row[6]
        row[1], row[2], row[3] = offset[out], offset[x], offset[y]
    if marks[3] == 0:
        marks[2], marks[3], marks[4] = number, room + scratch, room
    return steps[:number], tables[:used], marks, order, places
