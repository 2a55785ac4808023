"""The plan of a sweep: a binary tree over the vertices, and the products that go up and down it.

For a set S of vertices let o(S) be the product of the bonds that leave it and d(S) that of its
modes. A node S of the tree holds

    P_S  the cores in S contracted                 d(S) o(S)      made from both children
    D_S  P_S with itself over its modes            o(S) o(S)      made from both children
    M_S  the tensor with all cores outside of S    d(S) o(S)      made from parent and sibling
    N_S  D of all that is outside of S             o(S) o(S)      made from parent and sibling

so that at a leaf the normal equations are `G N = M`, and one walk down and up the tree solves every
core once with everything else up to date. The tree is the cheapest of all (dynamic programming over
sets of vertices) up to `EXACT` vertices, greedy above.

Everything is integers: a step is a row of `WORDS` numbers with offsets into one flat array of
float64, and `tables` says where the rows, columns and summed entries of its operands lie. So one
compiled function serves all topologies.
"""

from __future__ import annotations

import numpy as np

from tnc.explore.alternating.compiled import compiled

EXACT = 12
JOIN, SOLVE = 0, 1
WORDS = 14
"""kind, place of result, x, y, then m k n, then the tables of x (m, k) and y (k, n), then flags:
x is 1 a matrix m k or 2 its transpose, y is 1 a matrix k n or 2 its transpose; one is spare.
Of a solve: kind, core, N, M, then modes and bonds, then the tables of N and M."""


@compiled
def weigh(modes, bonds, sets):
    """Return the product of modes in every set of vertices and of bonds that leave it."""
    inside = np.ones(sets)
    leaving = np.ones(sets)
    for s in range(sets):
        for v in range(len(modes)):
            if s >> v & 1:
                inside[s] *= modes[v]
        for b in range(len(bonds)):
            if (s >> bonds[b, 0] ^ s >> bonds[b, 1]) & 1:
                leaving[s] *= bonds[b, 2]
    return inside, leaving


@compiled
def split_best(modes, bonds):
    """Return for every set of vertices the half that makes the cheapest tree, and the cost."""
    count = len(modes)
    sets = 1 << count
    inside, leaving = weigh(modes, bonds, sets)
    cost = np.zeros(sets)
    half = np.zeros(sets, np.int64)
    for s in range(1, sets):
        if s & (s - 1) == 0:
            continue
        least = np.inf
        part = (s - 1) & s
        while part > s - part:
            rest = s ^ part
            joint = np.sqrt(leaving[part] * leaving[rest] / leaving[s])
            both = joint * leaving[s]
            total = cost[part] + cost[rest] + 3.0 * (both * inside[s] + both * both) + 60.0
            if total < least:
                least = total
                half[s] = part
            part = (part - 1) & s
        cost[s] = least
    return half, cost[sets - 1]


@compiled
def tree_of(half, count):
    """Return children (2, nodes), leaves first as their vertex, root last."""
    nodes = 2 * count - 1
    children = np.full((nodes, 2), -1, np.int64)
    sets = np.zeros(nodes, np.int64)
    sets[nodes - 1] = (1 << count) - 1
    free = nodes - 2
    for node in range(nodes - 1, count - 1, -1):
        s = sets[node]
        for side in range(2):
            part = half[s] if side == 0 else s ^ half[s]
            if part & (part - 1) == 0:
                leaf = 0
                while part >> leaf & 1 == 0:
                    leaf += 1
                children[node, side] = leaf
            else:
                sets[free] = part
                children[node, side] = free
                free -= 1
    return children


@compiled
def tree_greedy(modes, bonds):
    """Return children of a tree that joins, again and again, the two that grow the least."""
    count = len(modes)
    nodes = 2 * count - 1
    children = np.full((nodes, 2), -1, np.int64)
    group = np.arange(count)
    for node in range(count, nodes):
        least = np.inf
        first, second = -1, -1
        for a in range(node):
            if not np.any(group == a):
                continue
            for b in range(a):
                if not np.any(group == b):
                    continue
                grown = 0.0
                shared = 0.0
                for v in range(count):
                    if group[v] == a or group[v] == b:
                        grown += np.log(modes[v])
                for k in range(len(bonds)):
                    g, h = group[bonds[k, 0]], group[bonds[k, 1]]
                    if (g in (a, b)) != (h in (a, b)):
                        grown += np.log(bonds[k, 2])
                    elif g != h and g in (a, b):
                        shared += np.log(bonds[k, 2])
                if grown - shared < least:
                    least = grown - shared
                    first, second = a, b
        children[node, 0], children[node, 1] = first, second
        for v in range(count):
            if group[v] == first or group[v] == second:
                group[v] = node
    return children


@compiled
def leaves_of(children, count):
    """Return the leaves from left to right: the order of a sweep and of the tensor's modes."""
    order = np.empty(count, np.int64)
    stack = np.empty(2 * count, np.int64)
    stack[0] = 2 * count - 2
    top, found = 1, 0
    while top:
        top -= 1
        node = stack[top]
        if node < count:
            order[found] = node
            found += 1
        else:
            stack[top] = children[node, 1]
            stack[top + 1] = children[node, 0]
            top += 2
    return order


@compiled
def spread(size, legs, strides, count, table, at):
    """Write the offset of every index of `count` legs, last fastest; return the end."""
    table[at] = 0
    filled = 1
    for place in range(count):
        wide, stride = size[legs[place]], strides[place]
        for old in range(filled - 1, -1, -1):
            base = table[at + old]
            for k in range(wide - 1, -1, -1):
                table[at + old * wide + k] = base + k * stride
        filled *= wide
    return at + filled


@compiled
def amount(size, legs, count):
    """Return the product of the sizes of legs."""
    total = 1
    for place in range(count):
        total *= size[legs[place]]
    return total


@compiled
def split_legs(size, x, nx, y, ny, free, free_strides, shared, shared_strides):
    """Part the legs of x into those that y lacks and those that it has; return their numbers."""
    stride, f, s = 1, 0, 0
    for place in range(nx - 1, -1, -1):
        has = False
        for other in range(ny):
            has = has or y[other] == x[place]
        if has:
            shared[s], shared_strides[s] = x[place], stride
            s += 1
        else:
            free[f], free_strides[f] = x[place], stride
            f += 1
        stride *= size[x[place]]
    free[:f] = free[:f][::-1].copy()
    free_strides[:f] = free_strides[:f][::-1].copy()
    shared[:s] = shared[:s][::-1].copy()
    shared_strides[:s] = shared_strides[:s][::-1].copy()
    return f, s


@compiled
def is_run(table, at, count, step):
    """Say whether a table counts up from 0 by `step`."""
    k = 0
    while k < count and table[at + k] == k * step:
        k += 1
    return k == count


@compiled
def join(size, legs, held, offset, x, y, out, steps, number, tables, used):
    """Append the step that contracts two tensors over all legs that they share; return its end.

    The result has the free legs of x, then those of y.
    """
    wide = legs.shape[1]
    free, free_strides = np.empty(wide, np.int64), np.empty(wide, np.int64)
    shared, shared_strides = np.empty(wide, np.int64), np.empty(wide, np.int64)
    other, other_strides = np.empty(wide, np.int64), np.empty(wide, np.int64)
    again, again_strides = np.empty(wide, np.int64), np.empty(wide, np.int64)
    fx, s = split_legs(
        size, legs[x], held[x], legs[y], held[y], free, free_strides, shared, shared_strides
    )
    fy, _ = split_legs(
        size, legs[y], held[y], legs[x], held[x], other, other_strides, again, again_strides
    )
    matched = np.empty(wide, np.int64)
    for a in range(s):
        for b in range(s):
            if again[b] == shared[a]:
                matched[a] = again_strides[b]
    m, k, n = amount(size, free, fx), amount(size, shared, s), amount(size, other, fy)
    row = steps[number]
    row[0], row[1], row[2], row[3] = 0, offset[out], offset[x], offset[y]
    row[4], row[5], row[6] = m, k, n
    row[7] = used
    row[8] = spread(size, free, free_strides, fx, tables, row[7])
    row[9] = spread(size, shared, shared_strides, s, tables, row[8])
    row[10] = spread(size, shared, matched, s, tables, row[9])
    end = spread(size, other, other_strides, fy, tables, row[10])
    row[11] = row[12] = 0
    if is_run(tables, row[7], m, k) and is_run(tables, row[8], k, 1):
        row[11] = 1
    elif is_run(tables, row[7], m, 1) and is_run(tables, row[8], k, m):
        row[11] = 2
    if is_run(tables, row[9], k, n) and is_run(tables, row[10], n, 1):
        row[12] = 1
    elif is_run(tables, row[9], k, 1) and is_run(tables, row[10], n, k):
        row[12] = 2
    held[out] = fx + fy
    legs[out, :fx] = free[:fx]
    legs[out, fx : fx + fy] = other[:fy]
    return end


@compiled
def sized(size, legs, held, tensor):
    """Return the number of entries of a tensor."""
    return amount(size, legs[tensor], held[tensor])


@compiled
def plan(modes, bonds):
    """Return all that `sweeps.fit` needs to know of a topology.

    `modes` has one entry for every vertex, 1 where it holds none; `bonds` are rows (a, b, size).
    Returned are `steps`, `tables`, `marks`: the numbers of steps before, of a sweep and of all (the
    last one rebuilds the tensor), the length of the flat array, of it the start of the scratch
    memory, the entries of all cores; then the order of the vertices in a sweep, the place of every
    core, and the table by which the rebuilt tensor is laid out as the given one.
    """
    count, edges = len(modes), len(bonds)
    if count <= EXACT:
        half, _ = split_best(modes, bonds)
        children = tree_of(half, count)
    else:
        children = tree_greedy(modes, bonds)
    order = leaves_of(children, count)
    nodes = 2 * count - 1
    size = np.ones(count + 2 * edges, np.int64)
    size[:count] = modes
    for b in range(edges):
        size[count + b] = size[count + edges + b] = bonds[b, 2]
    # Tensors: the given one, then P, D, M, N of every node, then the primed cores.
    p, d, e, g = 1, 1 + nodes, 1 + 2 * nodes, 1 + 3 * nodes
    primed = 1 + 4 * nodes
    kinds = primed + count
    legs = np.zeros((kinds, count + 2 * edges + 1), np.int64)
    held = np.zeros(kinds, np.int64)
    offset = np.zeros(kinds, np.int64)
    for place in range(count):
        if modes[order[place]] > 1:
            legs[0, held[0]] = order[place]
            held[0] += 1
    total = sized(size, legs, held, 0)
    places = np.empty(count + 1, np.int64)
    places[0] = total
    for v in range(count):
        for leg in range(count + edges):
            mine = leg == v and modes[v] > 1
            if leg >= count:
                mine = bonds[leg - count, 0] == v or bonds[leg - count, 1] == v
            if mine:
                legs[p + v, held[p + v]] = leg
                legs[primed + v, held[p + v]] = leg if leg < count else leg + edges
                held[p + v] += 1
        held[primed + v] = held[p + v]
        offset[p + v] = offset[primed + v] = places[v]
        places[v + 1] = places[v] + sized(size, legs, held, p + v)
    room = places[count]
    steps = np.zeros((14 * count + 4, 14), np.int64)
    tables = np.zeros(1 << 12, np.int64)
    number, used = 0, 0
    before, swept = 0, 0
    # Up the tree, then a walk: stage 0 goes to the first child, 1 to the second, 2 up again.
    stack = np.empty((2 * count + 2, 2), np.int64)
    for walk in range(2):
        top = 1
        stack[0, 0], stack[0, 1] = nodes - 1, 0
        while top:
            node, stage = stack[top - 1, 0], stack[top - 1, 1]
            todo = np.full((3, 3), -1, np.int64)
            if node < count:
                top -= 1
                if walk == 1:
                    number, used, tables = solve(
                        size, legs, held, offset, node, e + node, g + node, p + node,
                        count, edges, steps, number, tables, used,
                    )  # fmt: skip
                todo[0] = (p + node, primed + node, d + node)
            elif stage < 2:
                child, sibling = children[node, stage], children[node, 1 - stage]
                stack[top - 1, 1] += 1
                stack[top, 0], stack[top, 1] = child, 0
                top += 1
                if walk == 1:
                    root = node == nodes - 1
                    todo[0] = (0 if root else e + node, p + sibling, e + child)
                    if root:
                        offset[g + child] = offset[d + sibling]
                        held[g + child] = held[d + sibling]
                        legs[g + child] = legs[d + sibling]
                    else:
                        todo[1] = (g + node, d + sibling, g + child)
            else:
                top -= 1
                a, b = children[node, 0], children[node, 1]
                if node < nodes - 1:
                    todo[0] = (p + a, p + b, p + node)
                    todo[1] = (d + a, d + b, d + node)
                elif walk == 1:
                    swept = number
                    todo[0] = (p + a, p + b, p + node)
            for k in range(3):
                x, y, out = todo[k]
                if x < 0:
                    continue
                most = sized(size, legs, held, x) * 2 + sized(size, legs, held, y) * 2 + 8
                if used + most > len(tables):
                    grown = np.zeros(2 * len(tables) + most, np.int64)
                    grown[:used] = tables[:used]
                    tables = grown
                fresh = offset[out] == 0
                if fresh:
                    offset[out] = room
                used = join(size, legs, held, offset, x, y, out, steps, number, tables, used)
                if fresh:
                    room += sized(size, legs, held, out)
                number += 1
        if walk == 0:
            before = number
    scratch = 0
    for k in range(number):
        m, q, n = steps[k, 4], steps[k, 5], steps[k, 6]
        scratch = max(scratch, m * q + q * n if steps[k, 0] == 0 else 3 * q * q + 2 * m * q)
    last = p + nodes - 1
    strides = np.zeros(count, np.int64)
    stride = 1
    for place in range(held[last] - 1, -1, -1):
        strides[legs[last, place]] = stride
        stride *= size[legs[last, place]]
    back = np.zeros(total, np.int64)
    picked = np.empty(count, np.int64)
    for place in range(held[0]):
        picked[place] = strides[legs[0, place]]
    spread(size, legs[0], picked, held[0], back, 0)
    marks = np.array([before, swept, number, room + scratch, room, places[count] - total])
    return steps[:number].copy(), tables[:used].copy(), marks, order, places, back


@compiled
def solve(
    size, legs, held, offset, vertex, right, gram, core, count, edges, steps, number, tables, used
):
    """Append the step that solves a core; return the next step's number, end and tables."""
    mode = size[vertex]
    wide = legs.shape[1]
    mine, strides = np.empty(wide, np.int64), np.empty(wide, np.int64)
    prime, prime_strides = np.empty(wide, np.int64), np.empty(wide, np.int64)
    first = 1 if mode > 1 else 0
    bonds = held[core] - first
    row = steps[number]
    row[0], row[1], row[2], row[3] = 1, offset[core], offset[gram], offset[right]
    row[4], row[5] = mode, amount(size, legs[core][first:], bonds)
    most = 3 * row[5] + mode + 8
    if used + most > len(tables):
        grown = np.zeros(2 * len(tables) + most, np.int64)
        grown[:used] = tables[:used]
        tables = grown
    for b in range(bonds):
        mine[b] = legs[core, first + b]
        prime[b] = mine[b] + edges
        stride = 1
        for place in range(held[gram] - 1, -1, -1):
            if legs[gram, place] == mine[b]:
                strides[b] = stride
            if legs[gram, place] == prime[b]:
                prime_strides[b] = stride
            stride *= size[legs[gram, place]]
    row[7] = used
    row[8] = spread(size, mine, strides, bonds, tables, row[7])
    row[9] = spread(size, prime, prime_strides, bonds, tables, row[8])
    away = np.zeros(1, np.int64)
    stride = 1
    for place in range(held[right] - 1, -1, -1):
        if legs[right, place] == vertex:
            away[0] = stride
        for b in range(bonds):
            if legs[right, place] == mine[b]:
                strides[b] = stride
        stride *= size[legs[right, place]]
    self = np.full(1, vertex, np.int64)
    row[10] = spread(size, self, away, first, tables, row[9])
    end = spread(size, mine, strides, bonds, tables, row[10])
    return number + 1, end, tables
