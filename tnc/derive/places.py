"""Where the nodes of a drawing lie: lines, rings, stars, trees, circles; others by springs.

Neighbours are about 1 apart; y grows downwards.
"""

from __future__ import annotations

from itertools import combinations
from math import atan2, cos, hypot, pi, sin
from typing import Any

Place = tuple[float, float]
_DENSE = 0.5


def places(graph: Any) -> dict[str, Place]:
    """Return a place for every node; components lie side by side, in the order of their nodes."""
    import networkx

    found: dict[str, Place] = {}
    right = 0.0
    order = {node: k for k, node in enumerate(graph)}
    parts = [sorted(part, key=order.__getitem__) for part in networkx.connected_components(graph)]
    for part in sorted(parts, key=lambda nodes: order[nodes[0]]):
        laid = _component(graph.subgraph(part), part)
        left = min(x for x, _ in laid.values())
        middle = (min(y for _, y in laid.values()) + max(y for _, y in laid.values())) / 2
        found |= {node: (x - left + right, y - middle) for node, (x, y) in laid.items()}
        right = max(x for x, _ in found.values()) + 1.3
    return found


def forms(graph: Any) -> frozenset[str]:
    """Return the forms of the components."""
    import networkx

    return frozenset(form(graph.subgraph(part)) for part in networkx.connected_components(graph))


def form(graph: Any) -> str:
    """Name the form of a connected graph: line, star, tree, ring, circle or springs."""
    import networkx

    degrees = [degree for _, degree in graph.degree()]
    if networkx.is_tree(graph):
        if max(degrees) <= 2:
            return "line"
        return "star" if max(degrees) == len(degrees) - 1 else "tree"
    if set(degrees) == {2}:
        return "ring"
    return "circle" if networkx.density(graph) >= _DENSE else "springs"


def _component(graph: Any, nodes: list[str]) -> dict[str, Place]:
    kind = form(graph)
    if kind == "line":
        return {node: (float(k), 0.0) for k, node in enumerate(_path(graph, nodes))}
    if kind == "star":
        hub = max(nodes, key=graph.degree)
        leaves = [node for node in nodes if node != hub]
        return {hub: (0.0, 0.0)} | _circle(leaves, 0.65)
    if kind == "tree":
        return _tree(graph)
    if kind == "ring":
        return _circle(_around(graph, nodes))
    if kind == "circle":
        return _circle(_nearest(graph, nodes), 0.62)
    return _springs(graph, nodes)


def _path(graph: Any, nodes: list[str]) -> list[str]:
    ends = [node for node in nodes if graph.degree(node) < 2]
    return _walk(graph, ends[0])


def _around(graph: Any, nodes: list[str]) -> list[str]:
    return _walk(graph, nodes[0])


def _walk(graph: Any, node: str) -> list[str]:
    """Return the nodes of a path or a ring as they follow each other."""
    found = [node]
    while True:
        further = [other for other in graph[found[-1]] if other not in found]
        if not further:
            return found
        found.append(further[0])


def _circle(nodes: list[str], half: float = 0.53) -> dict[str, Place]:
    """Lay nodes on a circle, clockwise from the upper left; neighbours are `2 half` apart."""
    count = len(nodes)
    radius = max(half / sin(pi / count), 0.75) if count > 1 else 0.0
    begin = -pi / 2 - pi / count
    return {
        node: (radius * cos(begin + 2 * pi * k / count), radius * sin(begin + 2 * pi * k / count))
        for k, node in enumerate(nodes)
    }


def _nearest(graph: Any, nodes: list[str]) -> list[str]:
    """Return an order around a circle in which wide bonds are short, by exchanges of two."""
    order = list(nodes)
    count = len(order)

    def length() -> float:
        at = {node: k for k, node in enumerate(order)}
        return sum(
            float(weight) * sin(pi * abs(at[a] - at[b]) / count)
            for a, b, weight in graph.edges(data="weight")
        )

    least, better = length(), True
    while better:
        better = False
        for a, b in combinations(range(1, count), 2):
            order[a], order[b] = order[b], order[a]
            now = length()
            if now < least - 1e-9:
                least, better = now, True
            else:
                order[a], order[b] = order[b], order[a]
    return order


def _tree(graph: Any) -> dict[str, Place]:
    """Lay a tree in levels below its centre, which is one node or two."""
    import networkx

    order = {node: k for k, node in enumerate(graph)}
    roots = sorted(networkx.center(graph), key=order.__getitem__)
    found: dict[str, Place] = {}
    leaves = 0

    def lay(node: str, above: set[str], level: int) -> float:
        nonlocal leaves
        below = sorted((n for n in graph[node] if n not in above), key=order.__getitem__)
        if below:
            xs = [lay(child, {node}, level + 1) for child in below]
            x = (xs[0] + xs[-1]) / 2
        else:
            x, leaves = 0.9 * leaves, leaves + 1
        found[node] = (x, 0.95 * level)
        return x

    for root in roots:
        lay(root, set(roots), 0)
    return found


def _springs(graph: Any, nodes: list[str]) -> dict[str, Place]:
    """Lay a sparse graph by the distances in it (Kamada and Kawai, 1989), then spread it."""
    import networkx

    plain = networkx.Graph(graph.edges)
    planar, _ = networkx.check_planarity(plain)
    begin = networkx.planar_layout(plain) if planar else _circle(nodes)
    laid = networkx.kamada_kawai_layout(plain, pos=begin)
    turned = _turned({node: (float(x), float(y)) for node, (x, y) in laid.items()})
    spread = sorted(_apart(turned[a], turned[b]) for a, b in plain.edges)
    nearest = min(_apart(turned[a], turned[b]) for a, b in combinations(nodes, 2))
    scale = min(max(1.0 / spread[len(spread) // 2], 0.7 / max(nearest, 1e-6)), 4.0 / spread[-1])
    return {node: (scale * x, scale * y) for node, (x, y) in turned.items()}


def _turned(laid: dict[str, Place]) -> dict[str, Place]:
    """Turn places until they lie as flat as they can, the first node to the left."""
    count = len(laid)
    mx, my = sum(x for x, _ in laid.values()) / count, sum(y for _, y in laid.values()) / count
    xx = sum((x - mx) ** 2 for x, _ in laid.values())
    yy = sum((y - my) ** 2 for _, y in laid.values())
    xy = sum((x - mx) * (y - my) for x, y in laid.values())
    angle = 0.5 * atan2(2 * xy, xx - yy)
    first = laid[min(laid)]
    if (first[0] - mx) * cos(angle) + (first[1] - my) * sin(angle) > 0:
        angle += pi
    return {
        node: (
            (x - mx) * cos(angle) + (y - my) * sin(angle),
            (y - my) * cos(angle) - (x - mx) * sin(angle),
        )
        for node, (x, y) in laid.items()
    }


def _apart(a: Place, b: Place) -> float:
    return hypot(a[0] - b[0], a[1] - b[1])
