"""The steps of a program as loop nests over flat memory, for a number of rows that is known.

A product is one nest of up to five loops. What runs innermost lies one after another in memory, so
it is taken a vector at a time: columns of the result (`tile`), the terms of a sum (`dot`), or a
batch of products (`pairs`). All strides are in items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from tnc.derive.dense import INPUT, ROWS
from tnc.kernels.program import Copy, Matrix, Multiply, Program, extent
from tnc.net import Axis

MOVED = 5
"""The most loops of a copy."""
OUTPUT = "y"


@dataclass(frozen=True)
class Loop:
    """One loop: how often, and the strides of result, vector and scalar, in items."""

    count: int = 1
    result: int = 0
    vector: int = 0
    scalar: int = 0


@dataclass(frozen=True)
class Nest:
    """`result += vector * scalar` over loops; `kind` names the inner one, which is contiguous.

    'tile': `columns` contiguous in result and vector, the scalar one for all of them.
    'dot': `sum` contiguous in both factors. 'pairs': `columns` contiguous in all three.
    """

    kind: str
    result: str
    vector: str
    scalar: str
    batch: Loop
    outer: Loop
    rows: Loop
    columns: Loop
    sum: Loop


@dataclass(frozen=True)
class Move:
    """`result[..] = source[..]` over loops of (count, stride of the result, of the source)."""

    result: str
    source: str
    loops: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Picked:
    """`result[row, item] = source[number, item]`: rows of a table, by numbers that are the input.

    A row's number is the sum of `(x[row] // after % size) * stride` over `runs`; a size of 0 takes
    no remainder.
    """

    result: str
    source: str
    rows: int
    items: int
    runs: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Nests:
    """All loops of a program for so many rows; `scratch` has the items of values between."""

    steps: tuple[Nest | Move | Picked, ...]
    scratch: tuple[tuple[str, int], ...]


def nests(program: Program, rows: int) -> Nests | None:
    """Return a program's loops; None where a copy has too many runs."""
    size = dict(program.sizes) | {ROWS: rows}
    names = {INPUT: "x"}
    steps: list[Nest | Move | Picked] = []
    scratch: list[tuple[str, int]] = []
    given = list(program.steps)
    while len(given) > 1 and isinstance(given[-1], Copy) and len(moves(given[-1], size)) == 1:
        given.pop()  # the value before lies as the output does
    for place, step in enumerate(given):
        made = step.result if isinstance(step, Copy) else step.result.value
        final = place == len(given) - 1
        if isinstance(step, Copy):
            loops = moves(step, size)
            source = names[step.source]
            if len(loops) == 1 and not final:
                names[made] = source
                continue
            if len(loops) > MOVED:
                return None
        names[made] = OUTPUT if final else made
        if not final:
            layout = step.after if isinstance(step, Copy) else step.result.layout
            scratch.append((made, extent(layout, size)))
        steps.append(
            Move(names[made], source, loops)
            if isinstance(step, Copy)
            else nest(step, size, names | {step.right.value: step.right.value})
        )
    return Nests(tuple(steps), tuple(scratch))


def nest(step: Multiply, size: Mapping[str, int], names: Mapping[str, str] | None = None) -> Nest:
    """Return the loops of a product, the best kind that its layouts allow."""
    return min(_kinds(step, size, names), key=lambda found: cycles(found, LANES))


LANES = 16
"""Lanes of a vector when kinds are compared; the processor's own number changes little."""


def _kinds(
    step: Multiply, size: Mapping[str, int], names: Mapping[str, str] | None
) -> Iterator[Nest]:
    name = {m.value: m.value for m in (step.result, step.left, step.right)} | dict(names or {})
    count, (c, left, right) = _counts(step, size), (
        _strides(matrix, size) for matrix in (step.result, step.left, step.right)
    )  # fmt: skip

    def made(kind: str, turned: bool, outer: str, roles: dict[str, str]) -> Nest:
        v, s = (left, right) if turned else (right, left)
        vector, scalar = (step.left, step.right) if turned else (step.right, step.left)

        def loop(role: str) -> Loop:
            if not role:
                return Loop()
            return Loop(count[role], c.get(role, 0), v.get(role, 0), s.get(role, 0))

        return Nest(
            kind, name[step.result.value], name[vector.value], name[scalar.value],
            loop(roles.get("batch", "")), loop(outer), loop(roles.get("rows", "")),
            loop(roles.get("columns", "")), loop("k"),
        )  # fmt: skip

    def unit(role: str, *strides: Mapping[str, int]) -> bool:
        return count[role] == 1 or all(each.get(role, 0) == 1 for each in strides)

    for turned, rows, columns in ((False, "m", "n"), (True, "n", "m")):
        v = left if turned else right
        if unit(columns, c, v):
            yield made("tile", turned, "", {"batch": "b", "rows": rows, "columns": columns})
        if unit("k", left, right):
            yield made("dot", turned, "", {"batch": "b", "rows": rows, "columns": columns})
    if unit("b", c, left, right):
        yield made("pairs", False, "m", {"batch": "n", "columns": "b"})
    yield made("tile", False, "n", {"batch": "b", "rows": "m"})


def _counts(step: Multiply, size: Mapping[str, int]) -> dict[str, int]:
    found = dict.fromkeys("bmnk", 1)
    for matrix in (step.result, step.left, step.right):
        found |= {role: extent(group, size) for role, group in zip(matrix.roles, matrix.groups)}
    return found


def _strides(matrix: Matrix, size: Mapping[str, int]) -> dict[str, int]:
    found, stride = {}, 1
    for role, group in zip(reversed(matrix.roles), reversed(matrix.groups)):
        found[role] = stride
        stride *= extent(group, size)
    return found


def moves(step: Copy, size: Mapping[str, int]) -> tuple[tuple[int, int, int], ...]:
    """Return the loops of a copy, outermost first in the result; one loop is a plain copy."""
    after: Axis = tuple(n for n in step.after if size[n] != 1)
    before: Axis = tuple(n for n in step.before if size[n] != 1)
    runs: list[list[str]] = []
    for name in after:
        if runs and before.index(runs[-1][-1]) + 1 == before.index(name):
            runs[-1].append(name)
        else:
            runs.append([name])

    def stride(layout: Axis, name: str) -> int:
        return prod(size[n] for n in layout[layout.index(name) + 1 :])

    found = [(extent(tuple(r), size), stride(after, r[-1]), stride(before, r[-1])) for r in runs]
    return tuple(found) or ((1, 1, 1),)


def cycles(found: Nest, lanes: int) -> float:
    """Return about how many cycles a nest computes for, its memory in the nearest cache.

    A cycle starts two multiply-adds and two loads of vectors.
    """
    outer = found.batch.count * found.outer.count
    terms, columns, rows = found.sum.count, found.columns.count, found.rows.count
    if found.kind == "dot":
        quads = -(-columns // 4)
        return outer * rows * quads * (10 + -(-terms // lanes) * 2.5)
    if found.kind == "pairs":
        return outer * -(-columns // (4 * lanes)) * (6 + 4 * terms)
    if rows >= 4:
        deep = rows // 4 + (rows % 4)
        total = 0.0
        for width in _panels(columns, 4 * lanes):
            vectors = 1 if width <= lanes else 2 if width <= 2 * lanes else 4
            total += deep * (8 + terms * max(2.0 * vectors, 0.5 * (4 + vectors)))
        return outer * total
    total = 0.0
    for width in _panels(columns, 8 * lanes):
        vectors = next(n for n in (1, 2, 4, 8) if width <= n * lanes)
        total += rows * (8 + terms * 0.5 * (1 + vectors))
    return outer * total


def _panels(columns: int, most: int) -> Iterator[int]:
    for start in range(0, columns, most):
        yield min(most, columns - start)
