"""Print a program's loops as Python over flat memory: what the compiled loops compute.

The text says what runs, and runs itself (slowly): `forward(x, operands.., bias, y)` takes flat
arrays and adds into `y`. The compiled loops take the innermost ones a vector at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tnc.kernels.loops.nest import OUTPUT, Move, Nest, Nests, Picked, nests
from tnc.kernels.program import Program

_LETTERS = ("b", "o", "i", "j", "k")


def emit(program: Program, rows: int, *, bias: bool = False) -> str:
    """Return the source for so many rows; empty where a program has no loops."""
    found = nests(program, rows)
    operands = [operand.name for operand in program.operands]
    return "" if found is None else printed(found, operands, rows, bias=bias)


def printed(found: Nests, operands: Sequence[str], rows: int, *, bias: bool = False) -> str:
    """Return loops as source."""
    arguments = ", ".join(["x", *operands, *(["bias"] if bias else []), OUTPUT])
    lines = [f"def forward({arguments}):  # {rows} row{'s' if rows > 1 else ''}"]
    if bias:
        lines += [f"    for i in range(len({OUTPUT})):"]
        lines += [f"        {OUTPUT}[i] += bias[i % len(bias)]"]
    for name, count in found.scratch:
        lines.append(f"    {name} = [0.0] * {count}")
    for step in found.steps:
        if isinstance(step, Picked):
            written = _picked(step)
        else:
            written = _moved(step) if isinstance(step, Move) else _nested(step)
        lines += ["    " + line for line in written]
    return "\n".join(lines)


def _nested(step: Nest) -> Iterator[str]:
    yield f"# {step.kind}"
    loops = (step.batch, step.outer, step.rows, step.columns, step.sum)
    named = [(letter, loop) for letter, loop in zip(_LETTERS, loops) if loop.count > 1]
    yield from _heads([(letter, loop.count) for letter, loop in named])
    result = _place([(letter, loop.result) for letter, loop in named])
    vector = _place([(letter, loop.vector) for letter, loop in named])
    scalar = _place([(letter, loop.scalar) for letter, loop in named])
    product = f"{step.scalar}[{scalar}] * {step.vector}[{vector}]"
    yield "    " * len(named) + f"{step.result}[{result}] += {product}"


def _moved(step: Move) -> Iterator[str]:
    yield "# move"
    named = list(zip(_LETTERS, step.loops))
    yield from _heads([(letter, count) for letter, (count, _, _) in named])
    result = _place([(letter, stride) for letter, (_, stride, _) in named])
    source = _place([(letter, stride) for letter, (_, _, stride) in named])
    yield "    " * len(named) + f"{step.result}[{result}] += {step.source}[{source}]"


def _picked(step: Picked) -> Iterator[str]:
    yield "# pick"
    parts = []
    for after, size, stride in step.runs:
        part = "x[i]" if after == 1 else f"x[i] // {after}"
        part = f"{part} % {size}" if size else part
        parts.append(part if stride == 1 else f"{stride} * ({part})")
    yield from _heads([("i", step.rows)])
    yield f"    row = {' + '.join(parts)}"
    yield f"    for j in range({step.items}):"
    yield f"        {step.result}[{step.items} * i + j] = {step.source}[{step.items} * row + j]"


def _heads(loops: Sequence[tuple[str, int]]) -> Iterator[str]:
    for depth, (letter, count) in enumerate(loops):
        yield "    " * depth + f"for {letter} in range({count}):"


def _place(strides: Sequence[tuple[str, int]]) -> str:
    parts = [
        letter if stride == 1 else f"{stride} * {letter}" for letter, stride in strides if stride
    ]
    return " + ".join(parts) or "0"
