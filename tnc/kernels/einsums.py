"""Contractions as pairwise torch calls, in the order of fewest FLOPs.

What generated kernels are checked against, and what runs in their place under compilers, exporters,
transforms and while planning; differentiable any number of times. The order was searched when the
program was built; running it searches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from tnc.derive.contraction import Contraction, index_letters
from tnc.derive.dense import ROWS

FOLDED = 8
"""From so many matrices on, each with a vector of its own, entries are multiplied and summed."""


@dataclass(frozen=True)
class Instruction:
    """Contract two slots. `form` picks the call.

    'einsum' takes `spec`. 'fold' multiplies entry by entry and sums, where the right slot's legs
    are all among the left one's. 'rows' is `left @ right^T` and 'columns' is `left @ right`, over
    the last `width` legs of the left slot, the right slot flattened to the matrix `shape`; `split`
    are the fresh legs that the last dimension is unflattened to.
    """

    left: int
    right: int
    form: str
    spec: str = ""
    width: int = 1
    shape: tuple[int, int] = (1, 1)
    split: tuple[int, ...] = ()


@dataclass(frozen=True)
class Einsums:
    """Instructions over slots: the operands by `names`, then one slot an instruction.

    `final` permutes the trailing legs of the last slot into the wanted order.
    """

    names: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    final: tuple[int, ...]
    legs: int

    @property
    def takes_bias(self) -> bool:
        """Whether a bias can ride on the last matrix product."""
        last = self.instructions[-1] if self.instructions else None
        return last is not None and last.form == "rows" and not self.final and self.legs == 1

    def run(self, operands: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
        """Run on operands in the order of `names`; leading rows may have any shape.

        A `bias` is for programs that take one.
        """
        slots = list(operands)
        final = self.instructions[-1] if self.instructions else None
        for step in self.instructions:
            left, right = slots[step.left], slots[step.right]
            if step.form == "einsum":
                slots.append(torch.einsum(step.spec, left, right))
                continue
            if step.form == "fold":
                slots.append(fold(step.spec, left, right))
                continue
            if step.width > 1:
                left = left.flatten(-step.width)
            matrix = right if right.dim() == 2 else right.reshape(step.shape)
            if step.form == "rows":
                result = functional.linear(left, matrix, bias if step is final else None)
            else:
                result = torch.matmul(left, matrix)
            slots.append(torch.unflatten(result, -1, step.split) if len(step.split) > 1 else result)
        last = slots[-1]
        if self.final:
            lead = last.dim() - self.legs
            last = last.permute(*range(lead), *(lead + place for place in self.final))
        return last


def fold(spec: str, left: Tensor, right: Tensor) -> Tensor:
    """Return an einsum of two tensors, the right one's legs all among the left one's.

    An einsum would take a batch of products of matrices with vectors, item by item.
    """
    found = _folding(spec)
    turned = right.permute(found.order)
    sizes = iter(turned.shape)
    wide = turned.reshape([next(sizes) if there else 1 for there in found.there])
    return (left * wide).sum(found.summed).permute(found.final)


@dataclass(frozen=True)
class Folding:
    """How the right slot is permuted, at which legs of the left one it is, what is summed, and how
    the result is permuted."""

    order: tuple[int, ...]
    there: tuple[bool, ...]
    summed: tuple[int, ...]
    final: tuple[int, ...]


@lru_cache(maxsize=4096)
def _folding(spec: str) -> Folding:
    operands, output = spec.split("->")
    left, right = operands.split(",")
    kept = [leg for leg in left if leg in output]
    return Folding(
        tuple(right.index(leg) for leg in left if leg in right),
        tuple(leg in right for leg in left),
        tuple(place for place, leg in enumerate(left) if leg not in output),
        tuple(kept.index(leg) for leg in output),
    )


@lru_cache(maxsize=4096)
def lower(contraction: Contraction, folds: bool = False) -> Einsums:
    """Lower a contraction. Slots that carry `rows` keep it in front, as any leading dimensions.

    A step of an activation with a core whose summed legs come last becomes a plain matrix product;
    everything else is a pairwise einsum, or, with `folds`, a sum of products entry by entry where
    that reads a long batch of matrices with one vector each.
    """
    order = contraction.order
    layouts = list(order.operands)
    instructions = []
    for step in order.steps:
        a, b = step.left, step.right
        if ROWS in layouts[b] and ROWS not in layouts[a]:
            a, b = b, a
        if folds and len(layouts[a]) < len(layouts[b]):
            a, b = b, a
        instruction, layout = _instruction(contraction, a, b, layouts, step.indices)
        if folds and _folds(contraction, layouts[a], layouts[b], layout):
            instruction = replace(instruction, form="fold")
        instructions.append(instruction)
        layouts.append(layout)
    last = tuple(n for n in layouts[-1] if n != ROWS)
    wanted = tuple(n for n in contraction.output if n != ROWS)
    final = () if last == wanted else tuple(last.index(name) for name in wanted)
    return Einsums(contraction.names, tuple(instructions), final, len(last))


def _folds(
    contraction: Contraction, left: tuple[str, ...], right: tuple[str, ...], result: tuple[str, ...]
) -> bool:
    """Whether a step is a sum over a left slot for each of many entries of the right one."""
    within = set(right) <= set(left) and len(result) < len(left)
    batch = [n for n in right if n in result]
    return within and prod(contraction.size[n] for n in batch) >= FOLDED


def _instruction(
    contraction: Contraction,
    a: int,
    b: int,
    layouts: list[tuple[str, ...]],
    kept: tuple[str, ...],
) -> tuple[Instruction, tuple[str, ...]]:
    left, right, size = layouts[a], layouts[b], contraction.size
    summed = [n for n in left if n in right and n not in kept]
    fresh = tuple(n for n in right if n not in left)
    plain = summed and not any(n in right and n in kept for n in left) and ROWS in left
    if plain and left[-len(summed) :] == tuple(summed):
        lead = left[: -len(summed)]
        width, split = len(summed), tuple(size[n] for n in fresh)
        if right == fresh + tuple(summed):
            shape = (prod(split), prod(size[n] for n in summed))
            return Instruction(a, b, "rows", "", width, shape, split), lead + fresh
        if right == tuple(summed) + fresh:
            shape = (prod(size[n] for n in summed), prod(split))
            return Instruction(a, b, "columns", "", width, shape, split), lead + fresh
    layout = tuple(n for n in (*left, *right) if n in kept)
    layout = tuple(dict.fromkeys(layout))
    if ROWS in layout:
        layout = (ROWS, *(n for n in layout if n != ROWS))
    letters = index_letters((left, right))
    letters[ROWS] = "..."

    def write(indices: tuple[str, ...]) -> str:
        return "".join(letters[n] for n in indices)

    return Instruction(a, b, "einsum", f"{write(left)},{write(right)}->{write(layout)}"), layout
