"""The tree of a sweep, over the vertices of a topology.

It is the cheapest of all (dynamic programming over sets of vertices) up to `EXACT` vertices, greedy
above.
"""

from __future__ import annotations

import numpy as np

from tnc.explore.alternating.compiled import compiled

EXACT = 12


@compiled
def tree(modes, bonds):
    """Return the children of every node, and whether E is made in the place of D and N.

    `modes` and `bonds` are those of `plan`. Leaves are the vertices, the root is the last node.
    """
    count = len(modes)
    children = np.zeros((2 * count - 1, 2), np.int64)
    outside = False
    if count <= EXACT:
        half, cost = split_best(modes, bonds, False)
        other, least = split_best(modes, bonds, True)
        if least < cost:
            half, outside = other, True
        tree_of(half, count, children)
    else:
        tree_greedy(modes, bonds, children)
    return children, outside


@compiled
def split_best(modes, bonds, outside):
    """Return the half of every set of vertices that makes the cheapest tree, and its cost.

    Multiply-adds of a sweep, and 60 for each product; `outside` counts E in the place of D and N.
    """
    count = len(modes)
    sets = 1 << count
    inside = np.ones(sets)
    leaving = np.ones(sets)
    cost = np.zeros(sets)
    half = np.zeros(sets, np.int64)
    for s in range(1, sets):
        for v in range(count):
            if s >> v & 1:
                inside[s] *= modes[v]
        for b in range(len(bonds)):
            if (s >> bonds[b, 0] ^ s >> bonds[b, 1]) & 1:
                leaving[s] *= bonds[b, 2]
    dense = inside[sets - 1]
    for s in range(1, sets):
        part = (s - 1) & s
        if part == 0:
            if outside:
                cost[s] = leaving[s] * leaving[s] * dense / inside[s]
            continue
        least = np.inf
        while part > s ^ part:
            rest = s ^ part
            joint = np.sqrt(leaving[part] * leaving[rest] / leaving[s])
            both = joint * leaving[s]
            total = cost[part] + cost[rest] + 3.0 * both * inside[s] + 60.0
            if not outside:
                total += 3.0 * both * both
            elif s != sets - 1:
                total += dense / inside[s] * both * (inside[part] + inside[rest])
            if total < least:
                least = total
                half[s] = part
            part = (part - 1) & s
        cost[s] = least
    return half, cost[sets - 1]


@compiled
def tree_of(half, count, children):
    """Write the children of every node: leaves are the vertices, the root is last."""
    nodes = 2 * count - 1
    sets = np.zeros(nodes, np.int64)
    sets[nodes - 1] = len(half) - 1
    free = nodes - 2
    for node in range(nodes - 1, count - 1, -1):
        for side in range(2):
            part = half[sets[node]]
            if side == 1:
                part = sets[node] ^ part
            if part & (part - 1) == 0:
                leaf = 0
                while part >> leaf & 1 == 0:
                    leaf += 1
                children[node, side] = leaf
            else:
                sets[free] = part
                children[node, side] = free
                free -= 1


@compiled
def tree_greedy(modes, bonds, children):
    """Write the children of a tree that joins, again and again, the two that grow the least."""
    count = len(modes)
    group = np.arange(count)
    gone = np.zeros(2 * count, np.int64)
    for node in range(count, 2 * count - 1):
        least = np.inf
        for a in range(node):
            for b in range(a):
                if gone[a] or gone[b]:
                    continue
                grown = 0.0
                for v in range(count):
                    if group[v] == a or group[v] == b:
                        grown += np.log(modes[v])
                for k in range(len(bonds)):
                    first = group[bonds[k, 0]] == a or group[bonds[k, 0]] == b
                    second = group[bonds[k, 1]] == a or group[bonds[k, 1]] == b
                    if first != second:
                        grown += np.log(bonds[k, 2])
                    elif first and group[bonds[k, 0]] != group[bonds[k, 1]]:
                        grown -= np.log(bonds[k, 2])
                if grown < least:
                    least = grown
                    children[node, 0], children[node, 1] = a, b
        for side in range(2):
            gone[children[node, side]] = 1
            for v in range(count):
                if group[v] == children[node, side]:
                    group[v] = node
