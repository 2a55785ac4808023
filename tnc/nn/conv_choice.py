"""Which way a convolution is run for which input: chains, memory formats, packed weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tnc.derive.conv_seconds import Load, ways
from tnc.derive.cost import Work, conv_chain
from tnc.derive.grouped import grouped
from tnc.derive.merge import Merged
from tnc.net import Network, Structure
from tnc.nn.conv import Options
from tnc.nn.conv_stage import (
    FORMATS,
    AnyLine,
    Line,
    RebuiltLine,
    Stage,
    Weights,
    Whole,
    is_last,
    line,
)
from tnc.nn.dense import Rebuild, plan_rebuild
from tnc.nn.packed import Packed, pack, worth_packing

if TYPE_CHECKING:
    from tnc.nn.conv_view import ConvView

MANY_PIXELS = 128
"""Pixels of an image from which a product with a transposed operand beats a convolution."""


@dataclass(frozen=True)
class ConvTerm:
    """One network: its plain line, and its network of all groups where chains of it exist."""

    line: AnyLine
    rebuild: Rebuild
    whole: Whole | None

    def sized(self, options: Options) -> ConvTerm:
        """Return the term for another size of the result of a transposed convolution."""
        return replace(self, line=self.line.sized(options))


def conv_terms(view: ConvView, structure: Structure, options: Options) -> tuple[ConvTerm, ...]:
    """Choose the plain line of every term, by FLOPs of one image."""
    return tuple(_term(view, structure, term, options) for term in structure.terms)


def _term(view: ConvView, structure: Structure, term: Network, options: Options) -> ConvTerm:
    signature, covers = structure.signature, term.signature
    rebuild = plan_rebuild(Structure(signature, (term,)))
    side = "inputs" if view.transposed else "outputs"
    cut = view.groups > 1 and getattr(covers, side) != getattr(signature, side)
    network = None if cut else grouped(term, view.groups, view.transposed)
    if network is None or covers.inputs[1:] != signature.inputs[1:]:
        return ConvTerm(RebuiltLine.of(rebuild, options), rebuild, None)
    pad = covers.inputs[0] - signature.inputs[0]
    whole = Whole(network, pad, covers.outputs[0], signature.outputs[0])
    work = Work("conv", view.pixels_out, view.pixels_in, view.groups, view.transposed)
    found = conv_chain(term, signature, work)
    if found is None:
        return ConvTerm(RebuiltLine.of(rebuild, options), rebuild, whole)
    return ConvTerm(line(options, whole, Merged(network, ()), found[1].stages), rebuild, whole)


@dataclass(frozen=True)
class Asked:
    """What a way is chosen for: the shape of the inputs and whether their channels are last.

    `keeps` tells that weights are made once for many calls.
    """

    shape: tuple[int, ...]
    last: bool
    keeps: bool
    packs: bool
    """Whether neither gradients nor autocast nor a dtype stand against oneDNN's own layout."""


@dataclass(frozen=True)
class Choice:
    """The lines of all terms. For every stage of a line whether its weight is packed.

    `between`: inputs with channels first enter the only line by a matrix product and leave it by
    one; between, channels are last, and no activation is ever permuted.
    """

    lines: tuple[AnyLine, ...]
    packed: tuple[tuple[bool, ...], ...]
    last: bool
    between: bool

    def weights(self, cores: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], ...]:
        """Make the weights of all stages, differentiable, as views of the cores where they can be.

        A weight that happens to lie with channels last would lay out the result so.
        """
        made = (one.weights(cores) for one in self.lines)
        if self.last:
            return tuple(made)
        return tuple(tuple([w.contiguous() if is_last(w) else w for w in own]) for own in made)

    def laid_out(self, cores: Mapping[str, Tensor], shape: tuple[int, ...]) -> tuple[Weights, ...]:
        """Make the weights of all stages as the library wants them."""
        # a core's own layout is to leave no trace in the rounding of what is made of it
        cores = {name: core.contiguous() for name, core in cores.items()}
        found = []
        for one, packed in zip(self.lines, self.packed):
            own: list[Tensor | Packed] = []
            for place, (stage, weight) in enumerate(zip(one.stages, one.weights(cores))):
                if packed[place]:
                    seen = (shape[0], weight.shape[1] * stage.call.groups, *shape[2:])
                    own.append(pack(weight, stage.call, seen))
                elif self.last or (self.between and 0 < place < len(packed) - 1):
                    own.append(_last(weight))
                else:
                    own.append(weight.contiguous())
            found.append(tuple(own))
        return tuple(found)

    def run(self, n: int, weights: Sequence[Weights], bias: Tensor | None, x: Tensor) -> Tensor:
        """Run all lines on an input of `n` axes beside batch and channels, and add them up."""
        if self.between:
            return _between(self.lines[0].stages, weights[0], bias, x)
        found = run_lines(self.lines, n, weights, bias, x)
        return _last(found) if self.last else found


def run_lines(
    lines: Sequence[AnyLine], n: int, weights: Sequence[Weights], bias: Tensor | None, x: Tensor
) -> Tensor:
    """Run lines and add them up; the bias rides on the first that takes one."""
    total: Tensor | None = None
    for one, own in zip(lines, weights):
        rides = bias is not None and one.takes_bias
        part = one.run(x, own, bias if rides else None)
        bias = None if rides else bias
        total = part if total is None else total + part
    assert total is not None
    return total if bias is None else total + bias.view(-1, *[1] * n)


def choose(options: Options, terms: tuple[ConvTerm, ...], asked: Asked) -> Choice:
    """Choose by predicted time. A dense weight is rebuilt where one convolution is fastest."""
    lines = tuple(_line(options, term, asked) for term in terms)
    first = lines[0]
    between = (
        len(lines) == 1
        and asked.packs
        and not asked.last
        and options.n in FORMATS
        and isinstance(first, Line)
        and first.enters
        and (asked.shape[0] == 1 or prod(asked.shape[2:]) >= MANY_PIXELS)
    )
    packed = tuple(_packed(one, asked, between) for one in lines)
    return Choice(lines, packed, asked.last, between)


def _line(options: Options, term: ConvTerm, asked: Asked) -> AnyLine:
    if term.whole is None:
        return term.line
    sizes = asked.shape[2:]
    rounded = (prod(sizes), prod(options.sizes(sizes)), asked.shape[0])
    before, after, images = (1 << max(count - 1, 0).bit_length() for count in rounded)
    load = Load(images, before, after, options.transposed, asked.keeps)
    best = ways(term.whole.network, load)[:1]
    if not best:
        return term.line
    if len(best[0].stages) == 1 and options.groups == 1:
        return RebuiltLine.of(term.rebuild, options)  # it needs no padding of channels
    return line(options, term.whole, best[0].merged, best[0].stages)


def _packed(one: AnyLine, asked: Asked, between: bool) -> tuple[bool, ...]:
    def pays(place: int) -> bool:
        stage = one.stages[place]
        inside = not between or 0 < place < len(one.stages) - 1
        plain = not stage.call.turned and stage.passengers == 1
        return asked.packs and inside and plain and worth_packing(stage.shape, asked.shape)

    return tuple(pays(place) for place in range(len(one.stages)))


def _last(x: Tensor) -> Tensor:
    """Bring a weight or an activation into the memory format with channels last."""
    wanted = FORMATS.get(x.dim() - 2)
    return x.contiguous() if wanted is None else x.contiguous(memory_format=wanted)


def _between(stages: Sequence[Stage], weights: Weights, bias: Tensor | None, x: Tensor) -> Tensor:
    first, last = weights[0].flatten(1), weights[-1].flatten(1)  # type: ignore[union-attr]
    count = x.shape[0]
    y = torch.bmm(x.flatten(2).transpose(1, 2), first.t().expand(count, -1, -1))
    y = torch.unflatten(y, 1, x.shape[2:]).movedim(-1, 1)
    for stage, weight in zip(stages[1:-1], weights[1:-1]):
        y = stage.run(y, weight)
    flat = y.movedim(1, -1).flatten(1, -2).transpose(1, 2)
    wide = last.expand(count, -1, -1)
    if bias is None:
        found = torch.bmm(wide, flat)
    else:
        found = torch.baddbmm(bias.view(-1, 1), wide, flat)
    return torch.unflatten(found, 2, y.shape[2:])
