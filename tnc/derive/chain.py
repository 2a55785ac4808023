"""The convolution chain: cores absorbed one after another by an activation.

A convolution weight is a map `(i..) h w -> (o..)`, of any number of kernel axes. A core that
carries no kernel index is a pointwise map; one that carries `h` is a convolution along the height,
and so on. Indices that both the activation and the core carry and that are needed later are groups
(depthwise for CP). The activation is small-strided by the core that carries the kernel index, so
the order matters twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from math import prod

from tnc.net import Axis, Network

_ALL_ORDERS_UP_TO = 6


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
    """Return the cheapest chain, or None where a kernel axis is carried by several cores.

    `positions_in` and `positions_out` are the number of pixels before and after the convolution.
    A convolution works where it writes, a transposed one where it reads.
    """
    equation = network.equation
    kernel = {name for axis in equation.inputs[1:] for name in axis}
    for axis in equation.inputs[1:]:
        holders = [core for core in equation.cores if set(axis) & set(core.indices)]
        if len(holders) != 1 or not set(axis) <= set(holders[0].indices):
            return None
    if len(equation.cores) > _ALL_ORDERS_UP_TO:
        return None
    best: Chain | None = None
    for names in permutations([core.name for core in equation.cores]):
        found = _follow(network, names, kernel, (positions_in, positions_out), transposed)
        if best is None or found.flops < best.flops:
            best = found
    return best


def _follow(
    network: Network,
    names: tuple[str, ...],
    kernel: set[str],
    positions: tuple[int, int],
    transposed: bool,
) -> Chain:
    equation = network.equation
    before, after = positions
    taken = before if transposed else after
    legs = list(equation.inputs[0])
    outputs = set(equation.output_indices)
    stages, flops, left = [], 0, set(kernel)
    for place, name in enumerate(names):
        core = equation.core(name)
        carried = set(core.indices) - kernel
        later = outputs.union(*(equation.core(n).indices for n in names[place + 1 :]))
        contracted = tuple(n for n in legs if n in carried and n not in later)
        groups = tuple(n for n in legs if n in carried and n in later)
        fresh = tuple(n for n in core.indices if n in carried and n not in legs)
        passengers = tuple(n for n in legs if n not in carried)
        taps = tuple(n for n in core.indices if n in kernel)
        left -= set(taps)
        stages.append(Absorb(name, passengers, groups, contracted, fresh, taps))
        # A stage that is fresh and summed at once (an index of two cores only) cannot be: an index
        # is fresh when first met and summed when last met.
        work = (*passengers, *groups, *contracted, *fresh, *taps)
        pixels = taken if taps else (before if left else after)
        every = 2 * pixels * prod(network.size[n] for n in work)
        flops += round(every * network.density(core)) if core.stored else every
        legs = [*passengers, *groups, *fresh]
    return Chain(tuple(stages), flops)
