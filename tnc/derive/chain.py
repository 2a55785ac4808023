"""The convolution chain: cores absorbed one after another by an activation.

A convolution weight is a map `(i..) h w -> (o..)`, of any number of kernel axes. A core that
carries no kernel index is a pointwise map; one that carries `h` is a convolution along the height,
and so on. Indices that both the activation and the core carry and that are needed later are groups
(depthwise for CP). The activation is small-strided by the core that carries the kernel index, so
the order matters twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

from tnc.net import Axis, Network

ALL_ORDERS_UP_TO = 6
"""Chains of more cores are not searched."""


@dataclass(frozen=True)
class Absorb:
    """One stage: a core meets the activation.

    `groups` are carried by both and kept, `contracted` are summed, `fresh` are new legs, `kernel`
    are the kernel indices of the core, `passengers` are legs of the activation that it ignores.
    """

    core: str
    passengers: Axis
    groups: Axis
    contracted: Axis
    fresh: Axis
    kernel: Axis


@dataclass(frozen=True)
class Chain:
    """Stages in the cheapest order, with FLOPs for one image (multiply-add counted as two)."""

    stages: tuple[Absorb, ...]
    flops: int


@lru_cache(maxsize=4096)
def chain(
    network: Network, positions_in: int, positions_out: int, transposed: bool = False
) -> Chain | None:
    """Return the chain of the fewest FLOPs, or None where a kernel axis lies on several cores.

    `positions_in` and `positions_out` are the number of pixels before and after the convolution.
    A convolution works where it writes, a transposed one where it reads.
    """
    found = chains(network, positions_in, positions_out, transposed)
    return min(found, key=lambda one: one.flops, default=None)


def chains(
    network: Network, positions_in: int, positions_out: int, transposed: bool = False
) -> Iterator[Chain]:
    """Yield the chain of every order of the cores; none where there is none, or they are many."""
    if not is_chain(network):
        return
    equation = network.equation
    kernel = {name for axis in equation.inputs[1:] for name in axis}
    before, after = positions_in, positions_out
    taken = before if transposed else after
    for stages in orders(network):
        flops, left = 0, set(kernel)
        for stage in stages:
            left -= set(stage.kernel)
            work = (*stage.passengers, *stage.groups, *stage.contracted, *stage.fresh)
            pixels = taken if stage.kernel else (before if left else after)
            every = 2 * pixels * network.extent(work) * network.extent(stage.kernel)
            core = equation.core(stage.core)
            flops += round(every * network.density(core)) if core.stored else every
        yield Chain(stages, flops)


def is_chain(network: Network) -> bool:
    """Whether every kernel axis lies on one core, and the cores are few enough for a search."""
    equation = network.equation
    for axis in equation.inputs[1:]:
        holders = [core for core in equation.cores if set(axis) & set(core.indices)]
        if len(holders) != 1 or not set(axis) <= set(holders[0].indices):
            return False
    return len(equation.cores) <= ALL_ORDERS_UP_TO


@lru_cache(maxsize=4096)
def orders(network: Network) -> tuple[tuple[Absorb, ...], ...]:
    """Return the stages of every order of the cores."""
    names = [core.name for core in network.equation.cores]
    return tuple(stages_in(network, order) for order in permutations(names))


def stages_in(network: Network, names: tuple[str, ...]) -> tuple[Absorb, ...]:
    """Return the stages of one order of the cores."""
    equation = network.equation
    kernel = {name for axis in equation.inputs[1:] for name in axis}
    indices = {core.name: core.indices for core in equation.cores}
    later = [set(equation.output_indices)]
    for name in reversed(names[1:]):
        later.append(later[-1].union(indices[name]))
    legs, stages = equation.inputs[0], []
    for name in names:
        core, needed = indices[name], later.pop()
        passengers = tuple(n for n in legs if n not in core)
        groups = tuple(n for n in legs if n in core and n in needed)
        contracted = tuple(n for n in legs if n in core and n not in needed)
        # A stage that is fresh and summed at once (an index of two cores only) cannot be: an index
        # is fresh when first met and summed when last met.
        fresh = tuple(n for n in core if n not in legs and n not in kernel)
        taps = tuple(n for n in core if n in kernel)
        stages.append(Absorb(name, passengers, groups, contracted, fresh, taps))
        legs = (*passengers, *groups, *fresh)
    return tuple(stages)
