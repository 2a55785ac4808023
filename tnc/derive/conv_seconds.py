"""What a chain of convolutions takes in time, and the shortlist of ways to run a network.

A way is a partition of the cores into those merged ahead of time, and an order in which the
activation meets what is left. All cores in one is the dense weight, rebuilt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tnc.derive.chain import ALL_ORDERS_UP_TO, Absorb, is_chain, orders
from tnc.derive.merge import Merged, merged, partitions
from tnc.net import Axis, Network

ITEM = 4
"""Bytes of an entry: times are of float32."""


@dataclass(frozen=True)
class Rates:
    """What one core of a processor does: FLOPs a second, bytes a second, seconds a call.

    Only their ratios matter for a choice. Grouped convolutions of few channels waste vector lanes:
    `lanes` is how many channels fill one. `streamed` is what activations pass through a stage at,
    `copied` what they are permuted at.
    """

    flops: float = 110e9
    depthwise: float = 60e9
    lanes: int = 16
    streamed: float = 25e9
    copied: float = 6e9
    call: float = 12e-6


@dataclass(frozen=True)
class Load:
    """What a chain has to do: images, and the pixels of one before and after.

    `kept` tells that weights are made once for many calls, so that merging cores costs nothing.
    """

    images: int
    before: int
    after: int
    transposed: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Way:
    """One way to run a network as convolutions, with its predicted seconds."""

    merged: Merged
    stages: tuple[Absorb, ...]
    seconds: float

    def __str__(self) -> str:
        return " > ".join(stage.core for stage in self.stages)


@lru_cache(maxsize=4096)
def ways(network: Network, load: Load, rates: Rates = Rates(), count: int = 4) -> tuple[Way, ...]:
    """Return the best few ways by predicted time, the fastest first; none for too many cores."""
    if len(network.equation.cores) > ALL_ORDERS_UP_TO:
        return ()
    found: list[Way] = []
    for fewer, sketches in _sketches(network):
        timed = [(_seconds(sketch, load, rates), place) for place, sketch in enumerate(sketches)]
        least, place = min(timed, default=(0.0, 0))
        if timed:
            ahead = (
                0.0 if load.kept else fewer.flops / rates.flops + 2 * rates.call * len(fewer.made)
            )
            found.append(Way(fewer, sketches[place].stages, least + ahead))
    return tuple(sorted(found, key=lambda way: way.seconds)[:count])


def dense_way(
    groups: int, inside: int, outside: int, taps: int, load: Load, rates: Rates = Rates()
) -> float:
    """Return the seconds of one convolution; channels are those of a group."""
    whole = Extent(1, groups, inside, outside, taps, True, False)
    return _seconds(Sketch((), (whole,)), load, rates)


@dataclass(frozen=True)
class Extent:
    """The sizes of one stage: what it ignores, its groups, what it sums and makes, its kernel.

    `moved` tells that the legs of the activation have to be permuted before.
    """

    passengers: int
    groups: int
    inside: int
    outside: int
    taps: int
    ends: bool
    moved: bool


@dataclass(frozen=True)
class Sketch:
    """A chain with its sizes; a stage `ends` the kernel when no later one carries a part of it."""

    stages: tuple[Absorb, ...]
    extents: tuple[Extent, ...]


@lru_cache(maxsize=1024)
def _sketches(network: Network) -> tuple[tuple[Merged, tuple[Sketch, ...]], ...]:
    found = []
    for groups in partitions(network):
        fewer = merged(network, groups)
        if is_chain(fewer.network):
            sketches = tuple(_sketch(fewer.network, stages) for stages in orders(fewer.network))
            found.append((fewer, sketches))
    return tuple(found)


def _sketch(network: Network, stages: tuple[Absorb, ...]) -> Sketch:
    left = {name for axis in network.equation.inputs[1:] for name in axis}
    legs, extents = network.equation.inputs[0], []
    for stage in stages:
        left -= set(stage.kernel)
        extents.append(
            Extent(
                network.extent(stage.passengers),
                network.extent(stage.groups),
                network.extent(stage.contracted),
                network.extent(stage.fresh),
                network.extent(stage.kernel),
                bool(stage.kernel) and not left,
                _moves(legs, stage),
            )
        )
        legs = (*stage.passengers, *stage.groups, *stage.fresh)
    return Sketch(stages, tuple(extents))


def _moves(legs: Axis, stage: Absorb) -> bool:
    """Whether legs have to be permuted: within passengers, groups or summed legs order is free."""
    place = dict.fromkeys(stage.passengers, 0) | dict.fromkeys(stage.groups, 1)
    ranks = [place.get(name, 2) for name in legs]
    return ranks != sorted(ranks)


def _seconds(sketch: Sketch, load: Load, rates: Rates) -> float:
    total, pixels = 0.0, load.before
    for one in sketch.extents:
        after = load.after if one.ends else pixels
        worked = (pixels if load.transposed else load.after) if one.taps > 1 else pixels
        met = one.passengers * one.groups
        wide = load.images * met * (pixels * one.inside + after * one.outside)
        total += ITEM * wide / rates.streamed + rates.call
        if one.moved:
            total += 2 * ITEM * load.images * pixels * met * one.inside / rates.copied
        if one.passengers > 1 and one.taps > 1:
            total += 2 * ITEM * wide / rates.copied
        products = 2 * load.images * worked * met * one.taps
        if one.inside == one.outside == 1:
            total += products / rates.depthwise
        else:  # vectors are filled by the channels that a group writes
            full = -(-one.outside // rates.lanes) * rates.lanes
            total += products * one.inside * full / rates.flops
        pixels = after
    return total
