"""Draw a program as strips of memory: `python docs/images/draw_program.py` writes the guide's SVG.

Each value is a strip, its legs from the outermost to the innermost, coloured by the role that they
have in the product which reads it.
"""

from __future__ import annotations

from html import escape
from math import log2
from pathlib import Path

from tnc.derive.dense import ROWS
from tnc.kernels.choose import Task, ranked
from tnc.kernels.machine import generic
from tnc.kernels.program import Copy, Matrix, Multiply, Program
from tnc.net import parse_network

NETWORK = "G1[o1 i1 r] G2[r o2 i2] : (i1 i2) -> (o1 o2) | i1=32 i2=24 o1=48 o2=64 r=16"
TASK = Task(parse_network(NETWORK), 16, "float32", 1, False)
COLOURS = {"m": "#4c78a8", "n": "#59a14f", "k": "#e15759", "b": "#b07aa1", "": "#9aa5b1"}
NAMED = {"m": "stays", "n": "is brought", "k": "is summed", "b": "counts a batch"}
HIGH, GAP, WIDE = 30, 16, 960


def strip(
    x: float, y: float, legs: list[tuple[str, str]], size: dict[str, int]
) -> tuple[str, float]:
    """Draw a value's legs with their roles; return the drawing and where it ends."""
    parts = []
    for name, role in legs:
        width = 20 + 8 * log2(max(2, size[name]))
        label = f"{name} {'' if name == ROWS else size[name]}".strip()
        parts.append(
            f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HIGH}" fill="{COLOURS[role]}" '
            f'stroke="white"/><text x="{x + width / 2:.0f}" y="{y + 20}" fill="white" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
        x += width
    return "".join(parts), x


def text(x: float, y: float, words: str, style: str = "") -> str:
    """Write words beside strips; grey on light and on dark pages."""
    return f'<text x="{x:.0f}" y="{y + 20}" fill="#808890" {style}>{escape(words)}</text>'


def legs_of(matrix: Matrix) -> list[tuple[str, str]]:
    """Return the legs of a matrix in the order of memory, each with its role."""
    return [(name, role) for role, group in zip(matrix.roles, matrix.groups) for name in group]


def draw(program: Program, rows: int) -> str:
    """Draw every step: what is read, what it meets, what comes out."""
    size, y, parts = dict(program.sizes) | {ROWS: rows}, 34, []
    for step in program.steps:
        if isinstance(step, Copy):
            parts.append(text(8, y, f"{step.result} = copy of {step.source}"))
            drawn, x = strip(160, y, [(name, "") for name in step.before], size)
            more, _ = strip(x + 40, y, [(name, "") for name in step.after], size)
            parts += [drawn, text(x + 10, y, "→"), more]
        else:
            parts.append(
                text(8, y, f"{step.result.value} = {step.left.value} × {step.right.value}")
            )
            parts += _product(step, y, size)
        y += HIGH + GAP
    key, x = [], 160.0
    for role, words in NAMED.items():
        key.append(f'<rect x="{x:.0f}" y="8" width="12" height="12" fill="{COLOURS[role]}"/>')
        key.append(text(x + 18, -1, f"{role}: {words}"))
        x += 140
    style = 'font-family="system-ui, sans-serif" font-size="13"'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {y}" width="{WIDE}" '
            f'{style}>{"".join(key + parts)}</svg>\n')  # fmt: skip


def _product(step: Multiply, y: int, size: dict[str, int]) -> list[str]:
    left, x = strip(160, y, legs_of(step.left), size)
    right, end = strip(x + 30, y, legs_of(step.right), size)
    result, _ = strip(end + 30, y, legs_of(step.result), size)
    return [left, text(x + 9, y, "×"), right, text(end + 9, y, "="), result]


if __name__ == "__main__":
    best = ranked(TASK, generic("float32", 1))[0]
    file = Path(__file__).with_name("kernel-program.svg")
    file.write_text(draw(best.program, TASK.rows), encoding="utf-8")
    print(f"{file}\n{best.program}")
