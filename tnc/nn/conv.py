"""Convolutions as chains of the library's own convolutions.

Every stage of `derive.chain` is one convolution: contracted legs are its input channels, fresh legs
its output channels, kept legs its groups, and legs that the core ignores join the batch. In a
transposed convolution the stages that carry kernel axes are transposed, the others are pointwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from tnc.derive.chain import Absorb, Chain
from tnc.derive.cost import Work, conv_chain
from tnc.errors import KernelError
from tnc.net import Axis, Network, Structure
from tnc.nn.dense import Rebuild, plan_rebuild

if TYPE_CHECKING:
    from tnc.nn.conv_view import ConvView


@dataclass(frozen=True)
class Options:
    """A convolution's options with one number for each of its kernel axes.

    `pad` is done before, as `functional.pad` takes it, in `mode`; `padding` by the convolution.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    extra: tuple[int, ...]
    groups: int
    transposed: bool
    pad: tuple[int, ...]
    mode: str

    @property
    def n(self) -> int:
        """The number of kernel axes."""
        return len(self.kernel)

    def sized(self, given: Sequence[int], wanted: tuple[int, ...]) -> Options:
        """Return options whose results have the `wanted` size for inputs of a `given` shape.

        Only a transposed convolution can choose. Raises KernelError for sizes out of reach.
        """
        sizes = given[-self.n :]
        least = [
            (m - 1) * s - 2 * p + d * (k - 1) + 1
            for m, s, p, d, k in zip(sizes, self.stride, self.padding, self.dilation, self.kernel)
        ]
        extra = tuple(want - low for want, low in zip(wanted[-self.n :], least))
        if len(wanted) < self.n or any(not 0 <= e < s for e, s in zip(extra, self.stride)):
            raise KernelError(
                f"an output_size of {tuple(wanted)} from an input of {tuple(sizes)}",
                hint=f"sizes from {tuple(least)}, less than the stride {self.stride} more",
            )
        return replace(self, extra=extra)

    def prepared(self, x: Tensor) -> Tensor:
        """Apply the padding that the convolution cannot."""
        return functional.pad(x, self.pad, mode=self.mode) if self.pad else x

    def run(self, x: Tensor, weight: Tensor, groups: int, on: tuple[bool, ...] = ()) -> Tensor:
        """Convolve with a weight that has a kernel along the axes that are `on`, all by default.

        The weight is (o, i / groups, ..), or where it is transposed (i, o / groups, ..).
        """
        here = on or (True,) * self.n
        stride, padding, dilation, extra = (
            tuple(value if used else none for value, used in zip(values, here))
            for values, none in (
                (self.stride, 1),
                (self.padding, 0),
                (self.dilation, 1),
                (self.extra, 0),
            )
        )
        if self.transposed and any(here):
            turned: Any = _TRANSPOSED[self.n]
            made: Tensor = turned(x, weight, None, stride, padding, extra, groups, dilation)
            return made
        plain: Any = _PLAIN[self.n]
        found: Tensor = plain(x, weight, None, stride, padding, dilation, groups)
        return found


_PLAIN = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@dataclass(frozen=True)
class ConvTerm:
    """One network with its chain, or with how its weight is rebuilt.

    `network` is that of all groups. An activation's channels are filled up by `pad` a group, a
    result's are `crop` of `covers` a group.
    """

    network: Network
    chain: Chain | Rebuild
    pad: int
    covers: int
    crop: int


@dataclass(frozen=True)
class ConvPlan:
    """A convolution, ready to run: its options and its terms."""

    options: Options
    terms: tuple[ConvTerm, ...]


def plan_convolution(view: ConvView, structure: Structure) -> ConvPlan:
    """Choose the chain of every term. Raises KernelError for options that do not fit the kernel."""
    options = view.options(structure.signature.inputs[1:])
    return ConvPlan(options, tuple(_term(view, structure, term) for term in structure.terms))


def _term(view: ConvView, structure: Structure, term: Network) -> ConvTerm:
    work = Work("conv", view.pixels_out, view.pixels_in, view.groups, view.transposed)
    found = conv_chain(term, structure.signature, work)
    if found is None:
        rebuild = plan_rebuild(Structure(structure.signature, (term,)))
        return ConvTerm(term, rebuild, 0, 1, 1)
    missing = term.signature.inputs[0] - structure.signature.inputs[0]
    return ConvTerm(*found, missing, term.signature.outputs[0], structure.signature.outputs[0])


def convolve(plan: ConvPlan, cores: Mapping[str, Tensor], bias: Tensor | None, x: Tensor) -> Tensor:
    """Convolve `x[b, i, ..]`, or one image `x[i, ..]`, with the weight of a structure."""
    options = plan.options
    single = x.dim() == options.n + 1
    x = options.prepared(x.unsqueeze(0) if single else x)
    total: Tensor | None = None
    for term in plan.terms:
        part = _run(options, term, cores, x)
        total = part if total is None else total + part
    assert total is not None
    if bias is not None:
        total = total + bias.view(-1, *[1] * options.n)
    return total.squeeze(0) if single else total


def _run(options: Options, term: ConvTerm, cores: Mapping[str, Tensor], x: Tensor) -> Tensor:
    if isinstance(term.chain, Rebuild):
        weight = term.chain.run(cores)
        if options.transposed:
            weight = weight.transpose(0, 1)
        return options.run(x, weight, options.groups)
    # only the side that does not tell the group can be padded where there are groups
    groups = options.groups
    if term.pad:
        x = _split(x, groups)
        x = functional.pad(x, (0, 0) * options.n + (0, term.pad)).flatten(1, 2)
    axes = term.network.equation.inputs
    legs = list(axes[0])
    for stage in term.chain.stages:
        core = cores[stage.core].reshape(term.network.shape(term.network.equation.core(stage.core)))
        x, legs = _absorb(options, term.network, stage, core, x, legs)
    wanted = list(term.network.equation.outputs[0])
    if legs != wanted:
        x = _reordered(x, term.network, legs, wanted)
    if term.covers == term.crop:
        return x
    return _split(x, groups).narrow(2, 0, term.crop).flatten(1, 2)


def _split(x: Tensor, groups: int) -> Tensor:
    """Split channels into groups: `x[b, (g c), ..]` to `x[b, g, c, ..]`."""
    return torch.unflatten(x, 1, (groups, -1))


def _absorb(
    options: Options, term: Network, stage: Absorb, core: Tensor, x: Tensor, legs: list[str]
) -> tuple[Tensor, list[str]]:
    axes = term.equation.inputs[1:]
    wanted = [*stage.passengers, *stage.groups, *stage.contracted]
    if legs != wanted:
        x = _reordered(x, term, legs, wanted)
    passengers = term.extent(stage.passengers)
    if passengers > 1:
        x = _split(x, passengers).flatten(0, 1)
    taps = [tuple(n for n in axis if n in stage.kernel) for axis in axes]
    turned = options.transposed and bool(stage.kernel)
    inner = (stage.contracted, stage.fresh) if turned else (stage.fresh, stage.contracted)
    weight = _kernel(term, stage, core, inner, taps)
    groups = term.extent(stage.groups)
    x = options.run(x, weight, groups, tuple(bool(axis) for axis in taps))
    if passengers > 1:
        x = torch.unflatten(x, 0, (-1, passengers)).flatten(1, 2)
    return x, [*stage.passengers, *stage.groups, *stage.fresh]


def _kernel(
    term: Network, stage: Absorb, core: Tensor, inner: tuple[Axis, Axis], taps: list[Axis]
) -> Tensor:
    """Bring a core into the layout of a convolution's weight."""
    held = term.equation.core(stage.core).indices
    order = [*stage.groups, *inner[0], *inner[1], *(n for axis in taps for n in axis)]
    return core.permute([held.index(n) for n in order]).reshape(
        term.extent(stage.groups) * term.extent(inner[0]),
        term.extent(inner[1]),
        *(term.extent(axis) for axis in taps),
    )


def _reordered(x: Tensor, term: Network, legs: list[str], wanted: list[str]) -> Tensor:
    if len(legs) < 2:
        return x
    split = torch.unflatten(x, 1, [term.size[n] for n in legs])
    places = [1 + legs.index(n) for n in wanted]
    tail = range(1 + len(legs), split.dim())
    size = prod([term.size[n] for n in wanted])
    return split.permute(0, *places, *tail).reshape(x.shape[0], size, *x.shape[2:])
