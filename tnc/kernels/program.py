"""Programs: what a kernel computes, step by step, before any backend.

A program applies one network to a batch of inputs. Its one activation starts as the input and
absorbs the operands in turn; an operand is a core, or several cores merged ahead of time. Every
value lies in memory in the order of its legs, so a step says exactly which matrix products are
taken and where their results land: nothing is left to be permuted unless a `Copy` says so.

A matrix product is written by roles: `m` the legs of the activation that stay, `n` the legs that
the operand brings, `k` those summed, `b` those of a batch of products. The gradients of a product
are products of the same three values, by the same roles.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

from tnc.derive.dense import INPUT, ROWS
from tnc.net import Axis


@dataclass(frozen=True)
class Matrix:
    """A value seen as a matrix, or a batch of them: groups of legs in the order of memory.

    `roles` has one letter a group. Groups may be empty: they are axes of size 1.
    """

    value: str
    groups: tuple[Axis, ...]
    roles: str

    @property
    def layout(self) -> Axis:
        """All legs in the order of memory."""
        return tuple([name for group in self.groups for name in group])

    def group(self, role: str) -> Axis:
        """The legs of one role."""
        return self.groups[self.roles.index(role)]

    def __str__(self) -> str:
        inside = " | ".join(f"{role}: {' '.join(g)}" for role, g in zip(self.roles, self.groups))
        return f"{self.value}[{inside}]"


@dataclass(frozen=True)
class Multiply:
    """`result = left * right`, a matrix product by roles; `left` is the activation."""

    result: Matrix
    left: Matrix
    right: Matrix

    def __str__(self) -> str:
        return f"{self.result} = {self.left} * {self.right}"


@dataclass(frozen=True)
class Copy:
    """Write a value in another order of memory."""

    result: str
    source: str
    before: Axis
    after: Axis

    def __str__(self) -> str:
        return f"{self.result}[{' '.join(self.after)}] = copy of {self.source}" + (
            f"[{' '.join(self.before)}]"
        )


Step = Multiply | Copy


@dataclass(frozen=True)
class Operand:
    """What the activation absorbs: the product of `cores`, its legs in the order of memory."""

    name: str
    cores: tuple[str, ...]
    layout: Axis


@dataclass(frozen=True)
class Program:
    """The steps from `input` to the last value, which lies as `output` says.

    `sizes` has every index but `rows`, the number of inputs, which is free.
    """

    inputs: Axis
    output: Axis
    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    sizes: tuple[tuple[str, int], ...]

    @property
    def products(self) -> tuple[Multiply, ...]:
        """The matrix products, in order."""
        return tuple(step for step in self.steps if isinstance(step, Multiply))

    @property
    def takes_bias(self) -> bool:
        """Whether a bias can ride on the last matrix product."""
        last = self.steps[-1] if self.steps else None
        if not isinstance(last, Multiply):
            return False
        return last.result.roles == "mn" and last.result.groups[0] == (ROWS,)

    def __str__(self) -> str:
        lines = [f"{INPUT}[{ROWS} {' '.join(self.inputs)}]"]
        lines += [
            f"{operand.name}[{' '.join(operand.layout)}] = product of {', '.join(operand.cores)}"
            for operand in self.operands
            if len(operand.cores) > 1
        ]
        return "\n".join([*lines, *map(str, self.steps)])


def extent(axis: Axis, size: Mapping[str, int]) -> int:
    """The product of the sizes of some legs."""
    return prod([size[name] for name in axis])


def written(step: Step) -> str:
    """Return the name of a step's result."""
    return step.result if isinstance(step, Copy) else step.result.value


def read(step: Step) -> str:
    """Return the name of the activation that a step takes."""
    return step.source if isinstance(step, Copy) else step.left.value


def made(step: Step) -> Axis:
    """Return the legs of a step's result, in the order of memory."""
    return step.after if isinstance(step, Copy) else step.result.layout


def recomputed(
    program: Program, needs: Collection[str], kept: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[Step, ...]]:
    """Return what the gradients of some operands read of `kept` values, and what is recomputed.

    `needs` are names of operands. Every value that such an operand met is wanted; one that was not
    kept is made again from what its step read.
    """
    wanted = {step.left.value for step in program.products if step.right.value in needs}
    given: list[str] = []
    again: list[Step] = []
    for step in reversed(program.steps):
        result = written(step)
        if result not in wanted:
            continue
        if result in kept:
            given.append(result)
            continue
        again.append(step)
        wanted.add(read(step))
    return tuple(reversed(given)), tuple(reversed(again))


@cache
def called(result: str, left: str) -> tuple[str, str, str]:
    """Return the roles of rows, of columns and of what is summed in the call of a product.

    >>> called("bnm", "bkm")
    ('n', 'm', 'k')
    """
    rows, columns = (role for role in result if role != "b")
    return rows, columns, next(role for role in left if role not in ("b", rows, columns))


def dimensions(step: Multiply, size: Mapping[str, int]) -> tuple[int, int, int, int]:
    """Return (batch, m, n, k) of the library's call that computes a product.

    m and n are rows and columns of the result as it lies in memory.
    """
    rows, columns, summed = called(step.result.roles, step.left.roles)
    batch = step.result if "b" in step.result.roles else step.left
    return (
        extent(batch.group("b"), size) if "b" in batch.roles else 1,
        extent(step.result.group(rows), size),
        extent(step.result.group(columns), size),
        extent(step.left.group(summed), size),
    )


def product_flops(step: Multiply, size: Mapping[str, int]) -> int:
    """Count a product's FLOPs, two for each multiply-add."""
    return 2 * prod(dimensions(step, size))


def input_gradient(step: Multiply) -> Multiply:
    """Return the product that takes the gradient of a step's result to that of its activation."""
    return Multiply(gradient_of(step.left), gradient_of(step.result), step.right)


def operand_gradient(step: Multiply, turned: bool = False) -> Multiply:
    """Return the product that gives the gradient of a step's operand, or its transpose.

    Where the operand has no batch role and the step has, the batch is summed.
    """
    right = step.right
    if turned:
        other = {"k": "n", "n": "k", "b": "b"}
        roles = "".join(other[role] for role in right.roles)
        right = Matrix(right.value, tuple(right.group(role) for role in roles), roles)
    return Multiply(gradient_of(right), gradient_of(step.result), step.left)


def gradient_of(matrix: Matrix) -> Matrix:
    """Name the gradient of a value; it lies in memory as the value does."""
    return Matrix("d_" + matrix.value, matrix.groups, matrix.roles)
