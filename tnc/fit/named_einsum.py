"""Contractions of tensors whose dimensions have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    sizes = {n: s for tensor, axes in parts for n, s in zip(axes, tensor.shape)}
    contraction = Contraction(
        tuple(map(str, range(len(parts)))),
        tuple(axes for _, axes in parts),
        output,
        tuple(sorted(sizes.items())),
    )
    return follow(contraction, [tensor for tensor, _ in parts])


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
    letters = index_letters(tuple(axes for _, axes in parts))
    spelled = ["".join(letters[name] for name in axes) for _, axes in parts]
    text = f"{','.join(spelled)}->{''.join(letters[name] for name in output)}"
    return torch.einsum(text, *(tensor for tensor, _ in parts))


def _identity(name: str, operand: Axis, contraction: Contraction, example: Tensor) -> Tensor:
    size = contraction.size[operand[0]]
    return torch.eye(size, dtype=example.dtype, device=example.device)
