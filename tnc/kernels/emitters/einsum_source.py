"""Print a program's operands contracted by pairwise einsums: what compilers of torch are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tnc.derive.contraction import Contraction
from tnc.derive.dense import INPUT, ROWS
from tnc.kernels.einsums import Instruction, lower
from tnc.kernels.program import Program, extent
from tnc.net import Axis


def emit(program: Program, rows: int, *, bias: bool = False) -> str:
    """Return the source of `forward(x, operands.., bias)`, in the order of fewest FLOPs for `rows`.

    It is differentiable, and its rows are free.
    """
    size = dict(program.sizes)
    names = (INPUT, *(operand.name for operand in program.operands))
    legs = ((ROWS, *program.inputs), *(operand.layout for operand in program.operands))
    plain = lower(Contraction(names, legs, program.output, (*program.sizes, (ROWS, rows))))
    outputs = tuple(name for name in program.output if name != ROWS)
    rides = bias and plain.takes_bias
    arguments = ", ".join(["x", *names[1:], *(["bias"] if bias else [])])
    lines = [f"{INPUT} = x.reshape({_shape(('-1',), program.inputs, size)})"]
    for operand, step in zip(program.operands, program.products):
        if step.right.groups != tuple((name,) for name in operand.layout):
            lines.append(
                f"{operand.name} = {operand.name}.reshape({_shape((), operand.layout, size)})"
            )
    slots = list(names)
    for place, each in enumerate(plain.instructions):
        final = each is plain.instructions[-1]
        lines += _step(each, slots, f"t{place}", "bias" if rides and final else "")
        slots.append(f"t{place}")
    last = slots[-1]
    if plain.final:
        last += f".permute(0, {', '.join(str(1 + leg) for leg in plain.final)})"
    late = " + bias" if bias and not rides else ""
    lines.append(f"return {last}.reshape(-1, {extent(outputs, size)}){late}")
    return "\n".join([f"def forward({arguments}):", *("    " + line for line in lines)])


def _shape(first: tuple[str, ...], legs: Axis, size: dict[str, int]) -> str:
    return ", ".join([*first, *(str(size[name]) for name in legs)])


def _step(step: Instruction, slots: Sequence[str], name: str, bias: str) -> Iterator[str]:
    left, right = slots[step.left], slots[step.right]
    if step.form == "einsum":
        yield f'{name} = einsum("{step.spec}", {left}, {right})'
        return
    if step.width > 1:
        left += f".flatten({-step.width})"
    matrix = f"{right}.reshape{step.shape}"
    ending = f", {bias}" if bias else ""
    call = "linear" if step.form == "rows" else "matmul"
    split = f".unflatten(-1, {step.split})" if len(step.split) > 1 else ""
    yield f"{name} = {call}({left}, {matrix}{ending}){split}"
