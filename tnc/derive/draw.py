"""Drawings of a network as text and as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tnc.derive.pen import Drawing, Node, draw
from tnc.derive.sketch import Sketch
from tnc.net import Network

_FILL = {"trainable": "#3f72b5", "frozen": "#6b7686", "constant": "#d4d9e0"}
_INK = {"trainable": "#fff", "frozen": "#fff", "constant": "#222"}
_EDGE, _GAP, _CAPTION = 14.0, 30.0, 22.0


def draw_text(network: Network) -> str:
    """Draw cores as a list with their legs, then what every bond joins.

    >>> from tnc.net import parse_network
    >>> print(draw_text(parse_network("B[o r] A[r i] : i -> o | i=8 o=4 r=2")))
    B  4 x 2  o> r
    A  2 x 8  r i<
    r = 2: B - A
    """
    equation = network.equation
    inputs, outputs = set(equation.input_indices), set(equation.output_indices)
    wide = max(len(core.name) for core in equation.cores)
    lines = []
    for core in equation.cores:
        shape = " x ".join(map(str, network.shape(core))) or "scalar"
        if core.stored:
            shape += f", {network.stored(core)} stored"
        marked = (f"{n}{'>' * (n in outputs)}{'<' * (n in inputs)}" for n in core.indices)
        lines.append(f"{core.name.ljust(wide)}  {shape}  {' '.join(marked)}")
    for bond in equation.bonds:
        holders = [core.name for core in equation.cores if bond in core.indices]
        lines.append(f"{bond} = {network.size[bond]}: {' - '.join(holders)}")
    return "\n".join(lines)


def draw_svg(network: Network, named: bool = True) -> str:
    """Draw cores as discs, bonds and legs as lines as thick as the logarithm of their size.

    Chains are lines, rings rings, trees trees, dense graphs circles. An index with three ends or
    more, legs counted, is a dot. Arrows go the way of the map; a tensor has none. Without `named`
    bonds are told by their sizes alone.
    """
    return draw_sheet([Panel((network,))], named=named)


@dataclass(frozen=True)
class Panel:
    """One drawing of a sheet: a network, or the terms of a sum, below a caption."""

    networks: tuple[Network, ...]
    caption: str = ""


def draw_sheet(panels: Sequence[Panel], columns: int = 1, named: bool = True) -> str:
    """Draw several networks on one sheet, row by row, terms of a sum with a plus between."""
    cells = [_cell(panel, named) for panel in panels]
    body, top, right = [], _EDGE, 0.0
    rows = [cells[k : k + columns] for k in range(0, len(cells), columns)]
    wide = [max(row[k][1] for row in rows if k < len(row)) for k in range(min(columns, len(cells)))]
    for row in rows:
        left = _EDGE
        high = max(cell[2] for cell in row)
        for (parts, _, _), room in zip(row, wide):
            body.append(f'<g transform="translate({left:.1f} {top:.1f})">{parts}</g>')
            left += room + _GAP
        right = max(right, left - _GAP + _EDGE)
        top += high + _GAP
    foot = top - _GAP + _EDGE
    title = "; ".join(f"{n}" for panel in panels for n in panel.networks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:.0f} {foot:.0f}" '
        f'width="{right:.0f}" height="{foot:.0f}" font-family="system-ui, sans-serif" '
        f'font-size="12" text-anchor="middle"><title>{escape(title)}</title>'
        f'<rect class="ground" width="{right:.0f}" height="{foot:.0f}" rx="8" fill="#fff"/>'
        f"{''.join(body)}</svg>"
    )


def _cell(panel: Panel, named: bool) -> tuple[str, float, float]:
    """Return a panel's elements with its width and height; its corner is the origin."""
    drawn = [_drawn(network, named) for network in panel.networks]
    frames = [each.frame for each in drawn]
    head = _CAPTION if panel.caption else 0.0
    high = max(frame[3] for frame in frames)
    parts, x = [], 0.0
    for number, (each, (left, top, wide, own)) in enumerate(zip(drawn, frames)):
        if number:
            parts.append(f'<text class="told" x="{x + _GAP / 2:.1f}" y="{head + high / 2 + 6:.1f}" '
                         'font-size="20" fill="#222">+</text>')  # fmt: skip
            x += _GAP
        down = head + (high - own) / 2 - top
        parts.append(f'<g transform="translate({x - left:.1f} {down:.1f})">{each.body}</g>')
        x += wide
    if panel.caption:
        parts.append(f'<text class="told" x="0" y="12" text-anchor="start" fill="#222">'
                     f"{escape(panel.caption)}</text>")  # fmt: skip
        x = max(x, 6.5 * len(panel.caption))
    return "".join(parts), x, head + high


def _drawn(network: Network, named: bool) -> Drawing:
    nodes = {}
    for core in network.equation.cores:
        size = " x ".join(map(str, network.shape(core))) or "scalar"
        told = f"{core.name}[{' '.join(core.indices)}]: {size}"
        if core.stored:
            told += f", {network.stored(core)} stored"
        nodes[core.name] = Node(_FILL[core.kind], _INK[core.kind], told, bool(core.stored))
    return draw(Sketch.of(network), nodes, named)
