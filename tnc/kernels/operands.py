"""Operands of programs from cores: merged, permuted and grouped as the products take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tnc.derive.contraction import Contraction
from tnc.kernels.costs import merge
from tnc.kernels.einsums import lower
from tnc.kernels.program import Program, extent
from tnc.net import Network


@dataclass(frozen=True)
class Lay:
    """How one operand is made: cores, their contraction if they are several, order, shape."""

    cores: tuple[str, ...]
    merged: Contraction | None
    order: tuple[int, ...]
    shape: tuple[int, ...]


def lays(network: Network, program: Program) -> tuple[Lay, ...]:
    """Return how the operands of a program are made, in its order."""
    found = []
    for operand, step in zip(program.operands, program.products):
        merged = merge(network, operand.cores, operand.layout) if len(operand.cores) > 1 else None
        legs = operand.layout if merged else network.equation.core(operand.cores[0]).indices
        order = tuple(legs.index(name) for name in operand.layout)
        shape = tuple(extent(group, network.size) for group in step.right.groups)
        found.append(Lay(operand.cores, merged, order, shape))
    return tuple(found)


def keep(how: Lay, cores: Mapping[str, Tensor]) -> Tensor:
    """Make an operand for many calls: it lies in memory as products read it."""
    return lay(how, cores).detach().contiguous()


def lay(how: Lay, cores: Mapping[str, Tensor]) -> Tensor:
    """Make an operand; a view of the core where its memory allows it. Differentiable."""
    if how.merged is not None:
        return lower(how.merged).run([cores[name] for name in how.cores]).reshape(how.shape)
    core = cores[how.cores[0]]
    if how.order != tuple(range(len(how.order))):
        core = core.permute(how.order)
    return core.reshape(how.shape)
