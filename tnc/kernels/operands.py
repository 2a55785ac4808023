"""Operands of programs from cores: merged, permuted and grouped as the products take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from tnc.derive.contraction import Contraction
from tnc.kernels import einsums
from tnc.kernels.costs import merge
from tnc.kernels.einsums import lower
from tnc.kernels.kept import Kept, Shelf, apart, can_watch
from tnc.kernels.program import Operand, Program, extent
from tnc.net import Network

GRADIENT = "gradient"


@dataclass(frozen=True)
class Lay:
    """How one operand is made: cores, their contraction if they are several, order, shape.

    `order` is empty where a core's legs keep theirs.
    """

    cores: tuple[str, ...]
    merged: Contraction | None
    order: tuple[int, ...]
    shape: tuple[int, ...]
    legs: tuple[int, ...]
    """The sizes of the legs, in the order of the operand's memory."""
    merging: einsums.Einsums | None = field(default=None, compare=False)
    backs: tuple[einsums.Einsums, ...] = field(default=(), compare=False)
    """How a merged operand's gradient is brought to each core: from it and the other cores."""


def lays(network: Network, program: Program) -> tuple[Lay, ...]:
    """Return how the operands of a program are made, in its order."""
    return tuple(
        lay_of(network, operand, tuple(extent(group, network.size) for group in step.right.groups))
        for operand, step in zip(program.operands, program.products)
    )


def lay_of(network: Network, operand: Operand, shape: tuple[int, ...]) -> Lay:
    """Return how one operand is made, of a shape."""
    sizes = tuple(network.size[name] for name in operand.layout)
    if len(operand.cores) > 1:
        merged = merge(network, operand.cores, operand.layout)
        backs = tuple(
            lower(_back(merged, place), folds=True) for place in range(len(operand.cores))
        )
        return Lay(operand.cores, merged, (), shape, sizes, lower(merged), backs)
    legs = network.equation.core(operand.cores[0]).indices
    order = tuple(legs.index(name) for name in operand.layout)
    if order == tuple(range(len(order))):
        order = ()
    return Lay(operand.cores, None, order, shape, sizes)


def _back(merged: Contraction, place: int) -> Contraction:
    """Return the contraction of a merged operand's gradient and the other cores to one core."""
    rest = [other for other in range(len(merged.names)) if other != place]
    return replace(
        merged,
        names=(GRADIENT, *(merged.names[other] for other in rest)),
        operands=(merged.output, *(merged.operands[other] for other in rest)),
        output=merged.operands[place],
    )


def keep(how: Lay, cores: Mapping[str, Tensor]) -> Tensor:
    """Make an operand for many calls: it lies in memory as products read it."""
    return lay(how, cores).detach().contiguous()


def held(
    ways: Sequence[Lay], cores: Mapping[str, Tensor], shelf: Shelf[Tensor]
) -> Kept[tuple[Tensor, ...]] | None:
    """Make the operands that have changed, for many calls; None where changes are not seen.

    The cores that tell whether they are fresh are all that the operands are made of, in order.
    """
    names = dict.fromkeys(name for how in ways for name in how.cores)
    own = [cores[name] for name in names]
    if not can_watch(own):
        return None
    made, copied = [], []
    for how in ways:
        used = [cores[name] for name in how.cores]
        operand = shelf.take(how, used, partial(_kept, how, cores), partial(apart, cores=used))
        made.append(operand)
        copied += apart(operand, used)
    return Kept.of(tuple(made), own, copied)


def _kept(how: Lay, cores: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return keep(how, cores)


def lay(how: Lay, cores: Mapping[str, Tensor]) -> Tensor:
    """Make an operand; a view of the core where its memory allows it. Differentiable."""
    if how.merging is not None:
        return how.merging.run([cores[name] for name in how.cores]).reshape(how.shape)
    core = cores[how.cores[0]]
    if how.order:
        core = core.permute(how.order)
    return core if core.shape == how.shape else core.reshape(how.shape)


def gradient(how: Lay, place: int, found: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """Return the gradient of one of an operand's cores from that of the operand."""
    found = found.view(how.legs)
    if how.backs:
        rest = [core for other, core in enumerate(cores) if other != place]
        return how.backs[place].run([found, *rest])
    if how.order:
        found = found.permute([how.order.index(leg) for leg in range(len(how.order))])
    return found
