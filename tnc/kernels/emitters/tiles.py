"""Rows taken so many at a time: the loop over tiles, its function and its buffers."""

from __future__ import annotations

from collections.abc import Sequence

from tnc.derive.dense import INPUT
from tnc.kernels.emitters.writer import Writer, indented


def guarded(lines: Sequence[str]) -> list[str]:
    """Give the library back as it was, where lines switch it."""
    if not any("use(" in line or "tile(" in line for line in lines):
        return list(lines)
    return ["with switching():", *("    " + line for line in lines)]


def tile_function(name: str, arguments: Sequence[str], writer: Writer) -> str:
    named = ", ".join([*arguments, *writer.buffers])
    return f"def {name}({named}):\n" + indented([f"n = {INPUT}.shape[0]", *writer.lines])


def buffers(name: str, writer: Writer) -> str:
    made = [f"x.new_empty({', '.join(shape)})," for shape in writer.buffers.values()]
    inside = "\n".join("        " + line for line in made)
    return f"def {name}(x, n):\n    return (\n{inside}\n    )"


def tiles(tile: int, call: str, buffers: str) -> list[str]:
    return [
        f"buffers = {buffers}_of(x, {tile})",
        f"whole = n - n % {tile}",
        f"for a in range(0, whole, {tile}):",
        f"    b = a + {tile}",
        f"    {call}",
        "if whole < n:",
        "    a, b = whole, n",
        f"    buffers = {buffers}_of(x, n - whole)",
        f"    {call}",
    ]  # fmt: skip
