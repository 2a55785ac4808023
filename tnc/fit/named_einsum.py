"""Contractions of tensors whose dimensions have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tnc.derive import Contraction
from tnc.derive.contraction import index_letters
from tnc.net import Axis

Named = tuple[Tensor, Axis]
"""A tensor and the name of each of its dimensions."""

_IDENTITY = "identity:"


def contract(contraction: Contraction, tensors: Mapping[str, Tensor]) -> Tensor:
    """Contract operands pairwise in the cheapest order.

    Operands called `identity:LEG` need no tensor. Returns a tensor of `contraction.output`.
    """
    example = next(iter(tensors.values()))
    found = [
        _identity(name, operand, contraction, example)
        if name.startswith(_IDENTITY)
        else tensors[name]
        for name, operand in zip(contraction.names, contraction.operands)
    ]
    return follow(contraction, found)


def einsum(parts: Sequence[Named], output: Axis) -> Tensor:
    """Contract named tensors to the dimensions of `output`."""
    axes = tuple([axes for _, axes in parts])
    shapes = tuple([tensor.shape for tensor, _ in parts])
    return follow(_contraction(axes, output, shapes), [tensor for tensor, _ in parts])


@lru_cache(maxsize=4096)
def _contraction(
    axes: tuple[Axis, ...], output: Axis, shapes: tuple[tuple[int, ...], ...]
) -> Contraction:
    """Return what a sweep asks for again and again."""
    sizes = {n: s for names, shape in zip(axes, shapes) for n, s in zip(names, shape)}
    names = tuple(map(str, range(len(axes))))
    return Contraction(names, axes, output, tuple(sorted(sizes.items())))


def follow(contraction: Contraction, tensors: Sequence[Tensor]) -> Tensor:
    """Run the steps of a contraction over tensors in the order of its operands."""
    slots: list[Named] = list(zip(tensors, contraction.operands))
    for step in contraction.order.steps:
        pair = [slots[step.left], slots[step.right]]
        slots.append((_letters(pair, step.indices), step.indices))
    return (
        slots[-1][0]
        if slots[-1][1] == contraction.output
        else _letters(slots[-1:], contraction.output)
    )


def _letters(parts: Sequence[Named], output: Axis) -> Tensor:
    text = _spelled(tuple([axes for _, axes in parts]), output)
    return torch.einsum(text, *[tensor for tensor, _ in parts])


@lru_cache(maxsize=4096)
def _spelled(operands: tuple[Axis, ...], output: Axis) -> str:
    letters = index_letters(operands)
    spelled = ["".join(letters[name] for name in axes) for axes in operands]
    return f"{','.join(spelled)}->{''.join(letters[name] for name in output)}"


def _identity(name: str, operand: Axis, contraction: Contraction, example: Tensor) -> Tensor:
    size = contraction.size[operand[0]]
    return torch.eye(size, dtype=example.dtype, device=example.device)
