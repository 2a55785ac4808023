"""Choices as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tnc.kernels.choose import Choice
from tnc.kernels.program import Copy, Matrix, Multiply, Operand, Program, Step
from tnc.kernels.way import Back, Gradients, Way


def choice_to(choice: Choice) -> dict[str, Any]:
    """Write a choice."""
    program, way = choice.program, choice.way
    return {
        "inputs": list(program.inputs),
        "output": list(program.output),
        "operands": [[o.name, list(o.cores), list(o.layout)] for o in program.operands],
        "steps": [_step_to(step) for step in program.steps],
        "sizes": [list(pair) for pair in program.sizes],
        "way": [way.tile, list(way.backends), way.single, way.emitter, way.copies],
        "back": [
            way.back.tile,
            list(way.back.kept),
            [[each.input, each.operand, each.sum, each.turned] for each in way.back.gradients],
        ],
        "seconds": choice.seconds,
        "measured": choice.measured,
        "compiling": choice.compiling,
    }


def choice_from(data: Mapping[str, Any]) -> Choice:
    """Read what `choice_to` wrote."""
    program = Program(
        tuple(data["inputs"]),
        tuple(data["output"]),
        tuple(Operand(name, tuple(cores), tuple(legs)) for name, cores, legs in data["operands"]),
        tuple(_step_from(step) for step in data["steps"]),
        tuple((name, size) for name, size in data["sizes"]),
    )
    tile, backends, single, emitter, *more = data["way"]
    back_tile, kept, gradients = data.get("back", (tile, (), ()))
    back = Back(back_tile, tuple(kept), tuple(Gradients(*each) for each in gradients))
    way = Way(tile, tuple(backends), single, emitter, back, *more)
    compiling = data.get("compiling", 0.0)
    return Choice(program, way, data["seconds"], data["measured"], compiling)


def _step_to(step: Step) -> list[Any]:
    if isinstance(step, Copy):
        return [step.result, step.source, list(step.before), list(step.after)]
    return [_matrix_to(matrix) for matrix in (step.result, step.left, step.right)]


def _matrix_to(matrix: Matrix) -> list[Any]:
    return [matrix.value, [list(group) for group in matrix.groups], matrix.roles]


def _step_from(data: list[Any]) -> Step:
    if len(data) == 4:
        return Copy(data[0], data[1], tuple(data[2]), tuple(data[3]))
    result, left, right = (
        Matrix(value, tuple(tuple(group) for group in groups), roles)
        for value, groups, roles in data
    )
    return Multiply(result, left, right)
