"""Draw one sketch: discs, lines as thick as sizes are wide, labels that do not overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from math import atan2, cos, hypot, pi, sin

from tnc.derive.places import Place, forms, places
from tnc.derive.sketch import Leg, Sketch, Wire, thickness

STEP, RADIUS, REACH, HIGH = 98.0, 19.0, 48.0, 15.0
"""Pixels: between neighbours, of a disc, of a leg, of a line of text."""

_ALONG = (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73, 0.2, 0.8)
_INK = "#8792a2"


@dataclass(frozen=True)
class Box:
    """A rectangle by its centre and its sides, in pixels."""

    x: float
    y: float
    wide: float
    high: float

    def over(self, other: Box, room: float = 1.0) -> float:
        """Return the area that two rectangles share, with some room around."""
        x = (self.wide + other.wide) / 2 + room - abs(self.x - other.x)
        y = (self.high + other.high) / 2 + room - abs(self.y - other.y)
        return max(x, 0.0) * max(y, 0.0)


@dataclass(frozen=True)
class Node:
    """How a core is drawn: its fill, the ink of its name, what is told of it, if it is sparse."""

    fill: str
    ink: str
    told: str
    sparse: bool = False


@dataclass
class Drawing:
    """SVG elements in pixels, and the rectangles that they fill."""

    lines: list[str] = field(default_factory=list)
    tips: list[str] = field(default_factory=list)
    plates: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    discs: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)

    @property
    def body(self) -> str:
        """The elements in layers, from the back to the front."""
        layers = (
            (f'fill="none" stroke="{_INK}"', self.lines),
            (f'fill="{_INK}"', self.tips),
            ('class="plate" fill="#fff"', self.plates),
            ('class="told" fill="#222"', self.words),
            ("", self.discs),
        )
        return "".join(f"<g {kind}>{''.join(each)}</g>" for kind, each in layers if each)

    def write(self, box: Box, text: str) -> None:
        """Write a text on a plate of its own, and remember its place."""
        self.boxes.append(box)
        left, top = box.x - box.wide / 2, box.y - box.high / 2
        self.plates.append(
            f'<rect x="{left:.0f}" y="{top:.0f}" width="{box.wide:.0f}" height="{box.high:.0f}" '
            'rx="3"/>'
        )
        self.words.append(f'<text x="{box.x:.0f}" y="{box.y + 4:.0f}">{escape(text)}</text>')

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, top, width, height."""
        left = min(box.x - box.wide / 2 for box in self.boxes)
        top = min(box.y - box.high / 2 for box in self.boxes)
        right = max(box.x + box.wide / 2 for box in self.boxes)
        foot = max(box.y + box.high / 2 for box in self.boxes)
        return left, top, right - left, foot - top


def draw(sketch: Sketch, nodes: Mapping[str, Node], named: bool) -> Drawing:
    """Draw a sketch; bonds are labelled `r=2`, or by their sizes alone."""
    at = {name: (STEP * x, STEP * y) for name, (x, y) in places(sketch.graph).items()}
    made = Drawing()
    made.boxes += [Box(*at[core], _wide(core), 2 * RADIUS) for core in sketch.cores]
    made.boxes += [Box(*at[dot], 8.0, 8.0) for dot in sketch.dots]
    ways = _ways(sketch, at)
    made.lines += [_curve(wire, way) for wire, way in zip(sketch.wires, ways)]
    scene = _Scene.of(sketch, at, ways)
    for leg in sketch.legs:
        _leg(leg, scene, made)
    for wire, way in sorted(zip(sketch.wires, ways), key=lambda pair: _length(pair[1])):
        if not any(dot in wire.ends for dot in sketch.dots):
            spots = [_on(way, share) for share in _ALONG]
            _label(spots, wire, named, made)
    for dot in sketch.dots:
        made.tips.append(f'<circle cx="{at[dot][0]:.0f}" cy="{at[dot][1]:.0f}" r="4"/>')
        if not any(leg.node == dot for leg in sketch.legs):
            wire = next(wire for wire in sketch.wires if dot in wire.ends)
            _label(_around(at[dot]), wire, named, made)
    made.discs += [_disc(core, at[core], nodes[core]) for core in sketch.cores]
    return made


_Way = tuple[Place, Place, Place]
"""A line from one place to another, bent towards the one between."""


def _ways(sketch: Sketch, at: Mapping[str, Place]) -> list[_Way]:
    """Return the line of every wire: parallel ones fan out, none goes through a node."""
    ways = []
    alike: dict[frozenset[str], list[Wire]] = {}
    for wire in sketch.wires:
        alike.setdefault(frozenset(wire.ends), []).append(wire)
    for wire in sketch.wires:
        same = alike[frozenset(wire.ends)]
        a, b = sorted(wire.ends)
        (ax, ay), (bx, by) = at[a], at[b]
        bend = 34.0 * (same.index(wire) - (len(same) - 1) / 2)
        others = [place for name, place in at.items() if name not in wire.ends]
        if not bend and any(_away(place, at[a], at[b]) < RADIUS + 6 for place in others):
            bend = 0.3 * hypot(bx - ax, by - ay)
        length = hypot(bx - ax, by - ay) or 1.0
        middle = (
            (ax + bx) / 2 + 2 * bend * (ay - by) / length,
            (ay + by) / 2 + 2 * bend * (bx - ax) / length,
        )
        ways.append(((ax, ay), middle, (bx, by)))
    return ways


def _on(way: _Way, share: float) -> Place:
    (ax, ay), (mx, my), (bx, by) = way
    p, q, r = (1 - share) ** 2, 2 * share * (1 - share), share**2
    return p * ax + q * mx + r * bx, p * ay + q * my + r * by


def _length(way: _Way) -> float:
    return hypot(way[2][0] - way[0][0], way[2][1] - way[0][1])


def _curve(wire: Wire, way: _Way) -> str:
    (ax, ay), (mx, my), (bx, by) = way
    return (
        f'<path d="M{ax:.0f} {ay:.0f}Q{mx:.0f} {my:.0f} {bx:.0f} {by:.0f}" '
        f'stroke-width="{thickness(wire.size):.1f}"><title>{escape(wire.index)} = {wire.size}'
        "</title></path>"
    )


@dataclass(frozen=True)
class _Scene:
    """What legs have to keep clear of: nodes, points on lines, angles that are taken by node."""

    at: Mapping[str, Place]
    dots: tuple[str, ...]
    forms: frozenset[str]
    centre: Place
    points: tuple[Place, ...]
    taken: dict[str, list[float]]

    @classmethod
    def of(cls, sketch: Sketch, at: Mapping[str, Place], ways: list[_Way]) -> _Scene:
        taken: dict[str, list[float]] = {node: [] for node in at}
        for wire, way in zip(sketch.wires, ways):
            for node in wire.ends:
                (x, y), near = at[node], _on(way, 0.4 if way[0] == at[node] else 0.6)
                taken[node].append(atan2(near[1] - y, near[0] - x))
        points = tuple(_on(way, share / 10) for way in ways for share in range(1, 10))
        middle = _centre(at.values())
        return cls(at, sketch.dots, forms(sketch.graph), middle, points, taken)


def _leg(leg: Leg, scene: _Scene, made: Drawing) -> None:
    """Draw an open leg where there is most room: outputs rather up, inputs down."""
    x, y = place = scene.at[leg.node]
    taken, wish = scene.taken[leg.node], _wish(leg.way, scene.forms)
    text = f"{leg.index}={leg.size}"
    wide = _text(text)
    far = 1.5 * REACH + wide + 40
    boxes = [box for box in made.boxes if abs(box.x - x) - box.wide / 2 < far > abs(box.y - y)]
    nodes = [other for other in scene.at.values() if 0 < _apart(other, place) < far]
    points = [point for point in scene.points if RADIUS + 6 < _apart(point, place) < far]
    out = _apart(place, scene.centre) or 1.0

    def cost(angle: float, reach: float) -> float:
        gap = min([_between(angle, other) for other in taken], default=pi)
        away = (x - scene.centre[0]) * cos(angle) + (y - scene.centre[1]) * sin(angle)
        box = _tip(x, y, angle, reach, wide)
        over = sum(box.over(other, 3.0) for other in boxes)
        through = sum(_away(node, place, (box.x, box.y)) < RADIUS + 4 for node in nodes)
        crossed = sum(_away(point, place, (box.x, box.y)) < 5 for point in points)
        return (
            0.5 * over + 60 * through + 4 * crossed + reach / 30
            - 9 * min(gap, pi / 3) - wish[0] * away / out - wish[1] * sin(angle)
        )  # fmt: skip

    choices = [(k * pi / 12, reach) for reach in (REACH, 1.5 * REACH) for k in range(24)]
    angle, reach = min(choices, key=lambda choice: cost(*choice))
    taken.append(angle)
    made.write(_tip(x, y, angle, reach, wide), text)
    _stroke(leg, place, angle, 4.0 if leg.node in scene.dots else RADIUS, reach, made)


def _wish(way: str, forms: frozenset[str]) -> tuple[float, float]:
    """Return how much a leg is to point away from the middle of the drawing, and downwards."""
    if "tree" in forms:
        return 0.0, 6.0
    flat = forms == {"line"}
    down = {"out": -4.0, "in": 4.0, "": 4.0 if flat else -0.4}[way]
    return (0.0 if flat else 2.0), down


def _stroke(
    leg: Leg, place: Place, angle: float, begin: float, reach: float, made: Drawing
) -> None:
    """Draw the line of a leg, with an arrow where the network is a map."""
    (x, y), dx, dy, thick = place, cos(angle), sin(angle), min(thickness(leg.size), 6.0)
    made.lines.append(
        f'<path d="M{x:.0f} {y:.0f}L{x + reach * dx:.0f} {y + reach * dy:.0f}" '
        f'stroke-width="{thick:.1f}"/>'
    )
    if leg.way:
        point, sign = (reach + 5, -1) if leg.way == "out" else (begin + 1, 1)
        half, back = 2.5 + thick * 0.8, point + sign * (6 + thick)
        spots = ((point, 0.0), (back, half), (back, -half))
        tip = " ".join(f"{x + r * dx - s * dy:.0f},{y + r * dy + s * dx:.0f}" for r, s in spots)
        made.tips.append(f'<polygon points="{tip}"/>')


def _tip(x: float, y: float, angle: float, reach: float, wide: float) -> Box:
    """Return the place of a leg's label beyond its tip."""
    out = reach + 7 + abs(cos(angle)) * wide / 2 + abs(sin(angle)) * HIGH / 2
    return Box(x + out * cos(angle), y + out * sin(angle), wide, HIGH)


def _label(spots: list[Place], wire: Wire, named: bool, made: Drawing) -> None:
    """Write what a wire is at the first of some places that is free, or the freest."""
    text = f"{wire.index}={wire.size}" if named else str(wire.size)
    boxes = [Box(*spot, _text(text), HIGH) for spot in spots]
    x, y = spots[0]
    near = [box for box in made.boxes if abs(box.x - x) + abs(box.y - y) < 8 * STEP]
    free = [round(sum(box.over(other) for other in near), 6) for box in boxes]
    made.write(boxes[free.index(min(free))], text)


def _around(place: Place) -> list[Place]:
    """Return places for the label of a dot, above it first."""
    turns = (9, 10, 8, 11, 7, 3, 0, 6, 1, 5, 2, 4)
    return [(place[0] + 20 * cos(k * pi / 6), place[1] + 16 * sin(k * pi / 6)) for k in turns]


def _disc(name: str, place: Place, node: Node) -> str:
    wide = _wide(name)
    dash = ' stroke="#fff" stroke-width="2" stroke-dasharray="4 3"' if node.sparse else ""
    return (
        f'<g><title>{escape(node.told)}</title><rect class="core" x="{place[0] - wide / 2:.0f}" '
        f'y="{place[1] - RADIUS:.0f}" width="{wide:.0f}" height="{2 * RADIUS:.0f}" '
        f'rx="{RADIUS:.0f}" fill="{node.fill}"{dash}/><text x="{place[0]:.0f}" '
        f'y="{place[1] + 4:.0f}" fill="{node.ink}">{escape(name)}</text></g>'
    )


def _wide(name: str) -> float:
    return max(2 * RADIUS, _text(name) + 12)


def _text(words: str) -> float:
    return 6.7 * len(words) + 5


def _centre(found: Iterable[Place]) -> Place:
    spots = list(found)
    return sum(x for x, _ in spots) / len(spots), sum(y for _, y in spots) / len(spots)


def _apart(a: Place, b: Place) -> float:
    return hypot(a[0] - b[0], a[1] - b[1])


def _between(a: float, b: float) -> float:
    apart = abs(a - b) % (2 * pi)
    return min(apart, 2 * pi - apart)


def _away(point: Place, a: Place, b: Place) -> float:
    """Return the distance of a point from a segment."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = ((point[0] - a[0]) * dx + (point[1] - a[1]) * dy) / (dx * dx + dy * dy or 1.0)
    share = min(max(along, 0.0), 1.0)
    return hypot(point[0] - a[0] - share * dx, point[1] - a[1] - share * dy)
