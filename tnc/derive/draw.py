"""Drawings of a network as text and as SVG."""

from __future__ import annotations

from html import escape
from math import cos, pi, sin

from tnc.net import Network

_FILL = {"trainable": "#4c78a8", "frozen": "#9aa5b1", "constant": "#e0e0e0"}


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


def draw_svg(network: Network, width: int = 480, height: int = 320) -> str:
    """Draw cores as discs on a ring, bonds as lines with their sizes, legs as open ends.

    An index that joins more than two cores is a small dot with a line to each.
    """
    equation = network.equation
    place = _places(network, width, height)
    body: list[str] = []
    for name in equation.indices:
        holders = [core.name for core in equation.cores if name in core.indices]
        body += _bond(network, name, [place[h] for h in holders], (width / 2, height / 2))
    for core in equation.cores:
        x, y = place[core.name]
        body.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="18" fill="{_FILL[core.kind]}"/>'
            f'<text x="{x:.1f}" y="{y + 4:.1f}" fill="#fff">{escape(core.name)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11" text-anchor="middle">'
        f"<title>{escape(str(network))}</title>{''.join(body)}</svg>"
    )


def _places(network: Network, width: int, height: int) -> dict[str, tuple[float, float]]:
    cores = network.equation.cores
    if len(cores) == 1:
        return {cores[0].name: (width / 2, height / 2)}
    found = {}
    for number, core in enumerate(cores):
        angle = pi + 2 * pi * number / len(cores)
        found[core.name] = (
            width / 2 + 0.27 * width * cos(angle),
            height / 2 + 0.27 * height * sin(angle),
        )
    return found


def _bond(
    network: Network, name: str, ends: list[tuple[float, float]], centre: tuple[float, float]
) -> list[str]:
    label = escape(f"{name}={network.size[name]}")
    equation = network.equation
    arrows = [
        a
        for a, legs in (("→", equation.output_indices), ("←", equation.input_indices))
        if name in legs
    ]
    parts: list[str] = []
    if len(ends) > 2:
        hub = (sum(x for x, _ in ends) / len(ends), sum(y for _, y in ends) / len(ends))
        parts += [_line(hub, end) for end in ends]
        parts.append(f'<circle cx="{hub[0]:.1f}" cy="{hub[1]:.1f}" r="3" fill="#333"/>')
        parts.append(_label(hub, label))
    elif len(ends) == 2:
        shift = 6.0 * equation.indices.index(name) - 3.0 * len(equation.indices)
        middle = ((ends[0][0] + ends[1][0]) / 2, (ends[0][1] + ends[1][1]) / 2 + shift)
        parts += [_line(ends[0], middle), _line(middle, ends[1]), _label(middle, label)]
    if arrows:
        for x, y in ends or [centre]:
            spread = (equation.indices.index(name) % 3 - 1) * 26
            tip = (x + (x - centre[0]) * 0.45 + spread, y + (y - centre[1]) * 0.45 - 34)
            parts += [_line((x, y), tip), _label(tip, f"{' '.join(arrows)} {label}")]
    return parts


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
        f'stroke="#555" stroke-width="1.5"/>'
    )


def _label(place: tuple[float, float], text: str) -> str:
    return f'<text x="{place[0]:.1f}" y="{place[1] - 4:.1f}" fill="#222">{text}</text>'
