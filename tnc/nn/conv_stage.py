"""A chain of convolutions, lowered: everything about it that does not depend on tensors.

Every stage of `derive.chain` is one convolution: contracted legs are its input channels, fresh legs
its output channels, kept legs its groups, and legs that the core ignores join the batch. In a
transposed convolution the stages that carry kernel axes are transposed, the others are pointwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from tnc.derive.chain import Absorb
from tnc.derive.merge import Merged
from tnc.kernels.einsums import Einsums, lower
from tnc.net import Axis, Network
from tnc.nn.conv import Call, Options
from tnc.nn.dense import Rebuild

FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
"""The memory format with channels last, by the number of kernel axes."""


@dataclass(frozen=True)
class Move:
    """Permute the legs of the channels: their sizes, and where each new one was."""

    legs: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """One convolution of a chain.

    The weight is the core with its modes in `order`, in the `shape` that the library wants. The
    legs of the activation are moved before; `passengers` channels join the batch.
    """

    core: str
    order: tuple[int, ...]
    shape: tuple[int, ...]
    call: Call
    moved: Move | None
    passengers: int

    @property
    def pointwise(self) -> bool:
        """Whether it is a matrix over all channels, at every pixel."""
        plain = self.passengers == self.call.groups == 1 and self.moved is None
        return plain and not any(self.call.on)


@dataclass(frozen=True)
class Whole:
    """The network of all groups of a convolution.

    Activations get `pad` channels a group; of the `covers` that a group has in the end, the first
    `crop` are the result's.
    """

    network: Network
    pad: int = 0
    covers: int = 1
    crop: int = 1


@dataclass(frozen=True)
class Line:
    """Stages one after another, and what is made of the cores before: merged cores, weights."""

    merges: tuple[tuple[str, ...], ...]
    """All cores, in the groups that are one core each."""
    made: tuple[tuple[str, Einsums], ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    stages: tuple[Stage, ...]
    moved: Move | None
    groups: int
    whole: Whole

    @property
    def takes_bias(self) -> bool:
        """Whether a bias can ride on the last stage."""
        plain = self.moved is None and self.whole.covers == self.whole.crop
        return plain and self.stages[-1].passengers == 1

    def made_of(self, stage: Stage) -> tuple[str, ...]:
        """Return the cores that the weight of a stage is made of."""
        return next(group for group in self.merges if group[0] == stage.core)

    def weights(self, cores: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Make the weight of every stage, differentiable."""
        held = {name: cores[name].reshape(shape) for name, shape in self.shapes}
        for name, program in self.made:
            held[name] = program.run([held[each] for each in program.names])
        return tuple(
            held[stage.core].permute(stage.order).reshape(stage.shape) for stage in self.stages
        )

    def sized(self, options: Options) -> Line:
        """Return the line for another size of the result of a transposed convolution."""
        return replace(self, stages=_sized(self.stages, options))

    @property
    def enters(self) -> bool:
        """Whether the line begins and ends with a matrix over all channels, with more between."""
        ends = len(self.stages) > 2 and self.stages[0].pointwise and self.stages[-1].pointwise
        return ends and self.takes_bias and not self.whole.pad


@dataclass(frozen=True)
class RebuiltLine:
    """One convolution with the dense weight, where no chain is or none is cheaper."""

    rebuild: Rebuild
    stages: tuple[Stage, ...]
    transposed: bool
    takes_bias: ClassVar[bool] = True

    @classmethod
    def of(cls, rebuild: Rebuild, options: Options) -> RebuiltLine:
        """Lower a convolution to its only stage."""
        outputs, inputs, *kernel = rebuild.terms[0].shape
        sides = (inputs, outputs) if options.transposed else (outputs, inputs)
        stage = Stage("", (), (*sides, *kernel), options.call(options.groups), None, 1)
        return cls(rebuild, (stage,), options.transposed)

    def weights(self, cores: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Rebuild the weight."""
        weight = self.rebuild.run(cores)
        return (weight.transpose(0, 1) if self.transposed else weight,)

    def sized(self, options: Options) -> RebuiltLine:
        """Return the line for another size of the result of a transposed convolution."""
        return replace(self, stages=_sized(self.stages, options))


def _sized(stages: tuple[Stage, ...], options: Options) -> tuple[Stage, ...]:
    return tuple([replace(one, call=one.call.sized(options.extra)) for one in stages])


AnyLine = Line | RebuiltLine


def is_last(x: Tensor) -> bool:
    """Whether an activation lies in memory with channels last, and in no other way."""
    wanted = FORMATS.get(x.dim() - 2)
    return wanted is not None and not x.is_contiguous() and x.is_contiguous(memory_format=wanted)


def laid_last(x: Tensor) -> Tensor:
    """Bring a weight or an activation into the memory format with channels last."""
    wanted = FORMATS.get(x.dim() - 2)
    return x.contiguous() if wanted is None else x.contiguous(memory_format=wanted)


@lru_cache(maxsize=4096)
def line(options: Options, whole: Whole, fewer: Merged, chain: tuple[Absorb, ...]) -> Line:
    """Lower a chain of a merged network."""
    network = fewer.network
    shapes = [(core.name, whole.network.shape(core)) for core in whole.network.equation.cores]
    legs: Axis = network.equation.inputs[0]
    stages = []
    for place, stage in enumerate(chain):
        after = chain[place + 1] if place + 1 < len(chain) else None
        made, legs = _stage(options, network, stage, after, legs)
        stages.append(made)
    groups = {name: contraction.names for name, contraction in fewer.made}
    return Line(
        tuple(groups.get(core.name, (core.name,)) for core in network.equation.cores),
        tuple((name, lower(contraction)) for name, contraction in fewer.made),
        tuple(shapes),
        tuple(stages),
        _move(network, legs, network.equation.outputs[0]),
        options.groups,
        whole,
    )


def _stage(
    options: Options, network: Network, stage: Absorb, after: Absorb | None, legs: Axis
) -> tuple[Stage, Axis]:
    passengers, groups, contracted = (
        tuple(name for name in legs if name in part)
        for part in (stage.passengers, stage.groups, stage.contracted)
    )
    fresh = _fresh(network, stage, after)
    taps = [tuple(n for n in axis if n in stage.kernel) for axis in network.equation.inputs[1:]]
    turned = options.transposed and bool(stage.kernel)
    inner = (contracted, fresh) if turned else (fresh, contracted)
    held = network.equation.core(stage.core).indices
    order = [*groups, *inner[0], *inner[1], *(name for axis in taps for name in axis)]
    shape = (
        network.extent(groups) * network.extent(inner[0]),
        network.extent(inner[1]),
        *(network.extent(axis) for axis in taps),
    )
    made = Stage(
        stage.core,
        tuple(held.index(name) for name in order),
        shape,
        options.call(network.extent(groups), tuple(bool(axis) for axis in taps)),
        _move(network, legs, (*passengers, *groups, *contracted)),
        network.extent(passengers),
    )
    return made, (*passengers, *groups, *fresh)


def _fresh(network: Network, stage: Absorb, after: Absorb | None) -> Axis:
    """Order a stage's new legs as the next stage wants them, or the result."""
    if after is None:
        wanted: Axis = network.equation.outputs[0]
    else:
        wanted = (*after.passengers, *after.groups, *after.contracted)
    return tuple(sorted(stage.fresh, key=wanted.index))


def _move(network: Network, legs: Axis, wanted: Axis) -> Move | None:
    """Return how legs are permuted; None where that is no more than another name for them."""
    if legs == wanted:
        return None
    size = network.size
    if [name for name in legs if size[name] > 1] == [name for name in wanted if size[name] > 1]:
        return None
    return Move(tuple(size[n] for n in legs), tuple(legs.index(n) for n in wanted))
