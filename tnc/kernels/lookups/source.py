"""Look-ups as torch source: a few lines of index arithmetic, gathers and products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from tnc.derive.dense import ROWS
from tnc.kernels.device import DEFAULT
from tnc.kernels.execute import execute
from tnc.kernels.lookups.program import LookUp
from tnc.kernels.program import Copy, Matrix, Multiply, extent
from tnc.kernels.switch import switching, use
from tnc.net import Axis

NAMES: dict[str, Any] = {
    "embedding": torch.embedding,
    "mm": torch.mm,
    "bmm": torch.bmm,
    "use": use,
    "switching": switching,
}


@lru_cache(maxsize=4096)
def function(source: str) -> Callable[..., Tensor]:
    """Return the `forward` of a source."""
    found: Callable[..., Tensor] = execute(source, NAMES)["forward"]
    return found


def emit(program: LookUp, backends: Sequence[str] = ()) -> str:
    """Write `forward(x, *operands)`: row numbers `x[n]` to rows `[n, inputs]`.

    `backends` has the library of every product, all torch's own where it is empty.
    """
    size = dict(program.sizes)
    names = ", ".join(table.operand.name for table in program.tables)
    lines = ["n = x.shape[0]"] if program.steps else []
    numbers: dict[str, str] = {}
    for table in program.tables:
        if table.picked:
            asked = _number(program.runs(table))
            if asked not in numbers:
                numbers[asked] = "x" if asked == "x" else f"i_{table.operand.name}"
                if asked != "x":
                    lines.append(f"{numbers[asked]} = {asked}")
            lines.append(f"{table.rows} = embedding({table.operand.name}, {numbers[asked]})")
    libraries = iter(backends or [DEFAULT] * len(program.products))
    before = DEFAULT
    body = []
    for step in program.steps:
        if isinstance(step, Multiply):
            library = next(libraries)
            if library != before:
                body.append(f'use("{library}")')
                before = library
            body += _product(step, size)
        else:
            body.append(_copy(step, size))
    if set(backends) - {DEFAULT}:
        lines += ["with switching():", *(f"    {line}" for line in body)]
    else:
        lines += body
    width = extent(program.inputs, size)
    shaped = f"{program.last}.view(n, {width})" if program.steps else program.last
    lines.append(f"return {shaped}")
    return "\n".join([f"def forward(x, {names}):", *(f"    {line}" for line in lines)])


def _number(runs: Sequence[tuple[int, int, int]]) -> str:
    """Write the row number of a table from that of the whole."""
    parts = []
    for after, size, stride in runs:
        part = "x" if after == 1 else f"x // {after}"
        part = part if not size else f"{part} % {size}"
        parts.append(part if stride == 1 else f"({part}) * {stride}")
    return " + ".join(parts)


def _count(legs: Axis, size: Mapping[str, int]) -> str:
    """Write how many entries legs have."""
    fixed = prod(size[n] for n in legs if n != ROWS)
    if ROWS not in legs:
        return str(fixed)
    return "n" if fixed == 1 else f"n * {fixed}"


def _seen(matrix: Matrix, wanted: str, size: Mapping[str, int]) -> str:
    """Write a value as a matrix, or a batch, with its roles in the wanted order."""
    sizes = ", ".join(_count(group, size) for group in matrix.groups)
    text = f"{matrix.value}.view({sizes})"
    order = [matrix.roles.index(role) for role in wanted]
    if order == list(range(len(order))):
        return text
    if len(order) == 2:
        return f"{text}.t()"
    return f"{text}.permute({', '.join(map(str, order))})"


def _product(step: Multiply, size: Mapping[str, int]) -> Iterator[str]:
    batch = "b" if "b" in step.result.roles else ""
    result = step.result.value
    if not step.left.group("k"):
        left, right = (_count(step.result.group(role), size) for role in "mn")
        start = [_count(step.result.group("b"), size)] if batch else []
        other = f"{step.right.value}.view({', '.join([*start, '1', right])})"
        if step.left.roles in ("bmk", "mk"):
            yield f"{result} = {step.left.value}.view({', '.join([*start, left, '1'])}) * {other}"
        else:
            one = _seen(step.left, f"{batch}mk", size)
            yield f"{result} = ({one} * {other}).contiguous()"
        return
    call = "bmm" if batch else "mm"
    left = _seen(step.left, f"{batch}mk", size)
    yield f"{result} = {call}({left}, {_seen(step.right, f'{batch}kn', size)})"


def _copy(step: Copy, size: Mapping[str, int]) -> str:
    sizes = ", ".join(_count((name,), size) for name in step.before)
    order = ", ".join(str(step.before.index(name)) for name in step.after)
    return f"{step.result} = {step.source}.view({sizes}).permute({order}).contiguous()"
