"""The order of a sweep: which products go up and down its tree, by kind of tensor and node."""

from __future__ import annotations

import numpy as np

from tnc.explore.alternating.compiled import compiled


@compiled
def schedule(children, outside):
    """Return the products of the first way up, of a sweep and of the rebuilding, in order.

    Rows of the table are (what, x, y, out), tensors by kind and node: 0 the given tensor, then P,
    D, M, N, E and the primed P of every node. `what` is 0 for a join, 1 for a solve, 2 for a second
    name with primed bonds, 3 for a second name. After it the numbers before a sweep, to its end and
    of all.
    """
    nodes = len(children)
    count, root = (nodes + 1) // 2, nodes - 1
    work = np.zeros((40 * count, 4), np.int64)
    p, d, m, n, e, primed = 1, 1 + nodes, 1 + 2 * nodes, 1 + 3 * nodes, 1 + 4 * nodes, 1 + 5 * nodes
    stack = np.zeros((2 * count + 2, 2), np.int64)
    used, before, swept = np.int64(0), np.int64(0), np.int64(0)
    for walk in range(2):
        top = 1
        stack[0, 0], stack[0, 1] = root, 0
        while top:
            node, stage = stack[top - 1, 0], stack[top - 1, 1]
            if node < count:
                top -= 1
                if walk and outside:
                    used = put(work, used, 2, e + node, 0, primed + node)
                    used = put(work, used, 0, e + node, primed + node, n + node)
                if walk:
                    used = put(work, used, 1, n + node, m + node, p + node)
                if not outside:
                    used = put(work, used, 2, p + node, 0, primed + node)
                    used = put(work, used, 0, p + node, primed + node, d + node)
            elif stage < 2:
                child, sibling = children[node, stage], children[node, 1 - stage]
                stack[top - 1, 1] += 1
                stack[top, 0], stack[top, 1] = child, 0
                top += 1
                if walk == 0:
                    continue
                used = put(work, used, 0, 0 if node == root else m + node, p + sibling, m + child)
                if node == root:
                    x, out = (p + sibling, e + child) if outside else (d + sibling, n + child)
                    used = put(work, used, 3, x, 0, out)
                elif outside:
                    used = put(work, used, 0, e + node, p + sibling, e + child)
                else:
                    used = put(work, used, 0, n + node, d + sibling, n + child)
            else:
                top -= 1
                a, b = children[node, 0], children[node, 1]
                if node == root and walk == 0:
                    continue
                if node == root:
                    swept = used
                used = put(work, used, 0, p + a, p + b, p + node)
                if node != root and not outside:
                    used = put(work, used, 0, d + a, d + b, d + node)
        if walk == 0:
            before = used
    return work, before, swept, used


@compiled
def put(work, used, what, x, y, out):
    """Write one row of work; return the next."""
    work[used, 0], work[used, 1], work[used, 2], work[used, 3] = what, x, y, out
    return used + 1
