"""Look-ups as loops over memory: rows are gathered into scratch, then the products' nests run."""

from __future__ import annotations

from tnc.derive.dense import ROWS
from tnc.kernels.lookups.program import LookUp
from tnc.kernels.loops.nest import MOVED, OUTPUT, Move, Nest, Nests, Picked, moves, nest
from tnc.kernels.program import Copy, extent, made, written

RUNS = 6
"""The most runs of digits of one table."""


def nests(program: LookUp, rows: int) -> Nests | None:
    """Return a look-up's loops for so many numbers; None where it has none."""
    size = dict(program.sizes) | {ROWS: rows}
    steps: list[Nest | Move | Picked] = []
    scratch: list[tuple[str, int]] = []
    for table in program.tables:
        if not table.picked:
            continue
        runs = program.runs(table)
        if len(runs) > RUNS:
            return None
        items = extent(table.rest, size)
        value = OUTPUT if not program.steps else table.rows
        if program.steps:
            scratch.append((table.rows, rows * items))
        steps.append(Picked(value, table.operand.name, rows, items, runs))
    names: dict[str, str] = {}
    for place, step in enumerate(program.steps):
        final = place == len(program.steps) - 1
        name = written(step)
        names[name] = OUTPUT if final else name
        if not final:
            scratch.append((name, extent(made(step), size)))
        if isinstance(step, Copy):
            loops = moves(step, size)
            if len(loops) > MOVED:
                return None
            steps.append(Move(names[name], names.get(step.source, step.source), loops))
        else:
            values = {m.value: names.get(m.value, m.value) for m in (step.left, step.right)}
            steps.append(nest(step, size, names | values))
    return Nests(tuple(steps), tuple(scratch))
