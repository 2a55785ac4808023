"""Contractions as pairwise einsums: differentiable any number of times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tnc.derive.contraction import Contraction, index_letters


def contract(contraction: Contraction, tensors: Sequence[Tensor]) -> Tensor:
    """Contract tensors in the cheapest order by FLOPs."""
    slots, legs = list(tensors), list(contraction.operands)
    letters = index_letters((*contraction.operands, contraction.output))

    def write(axis: Sequence[str]) -> str:
        return "".join(letters[name] for name in axis)

    for step in contraction.order.steps:
        a, b = legs[step.left], legs[step.right]
        spec = f"{write(a)},{write(b)}->{write(step.indices)}"
        slots.append(torch.einsum(spec, slots[step.left], slots[step.right]))
        legs.append(step.indices)
    if legs[-1] == contraction.output:
        return slots[-1]
    return torch.einsum(f"{write(legs[-1])}->{write(contraction.output)}", slots[-1])
