"""Which way a convolution is run for which input: chains, memory formats, packed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from tnc.derive.conv_seconds import Load, dense_way, ways
from tnc.derive.cost import Work, conv_chain
from tnc.derive.grouped import grouped
from tnc.derive.merge import Merged
from tnc.net import Network, Structure
from tnc.nn.conv import Options
from tnc.nn.conv_source import emit, function
from tnc.nn.conv_stage import (
    FORMATS,
    AnyLine,
    Line,
    RebuiltLine,
    Whole,
    is_last,
    laid_last,
    line,
)
from tnc.nn.dense import Rebuild, plan_rebuild
from tnc.nn.packed import can_pack, pack, worth_packing

if TYPE_CHECKING:
    from tnc.nn.conv_view import ConvView

MANY_PIXELS = 128
"""Pixels of an image from which a product with a transposed operand beats a convolution."""


MANY_LAST = 512
"""Pixels of all images, channels last, from which every weight that can be packed is."""


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


class Asked(NamedTuple):
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
    one; between, channels are last, and no activation is ever permuted. `seconds` are predicted,
    `measured` timed (0: not measured).
    """

    lines: tuple[AnyLine, ...]
    packed: tuple[tuple[bool, ...], ...]
    last: bool
    between: bool
    seconds: float = field(default=0.0, compare=False)
    measured: float = field(default=0.0, compare=False)

    @classmethod
    def plain(cls, terms: tuple[ConvTerm, ...]) -> Choice:
        """Return the way by the library's calls alone, which compilers and transforms follow."""
        lines = tuple(term.line for term in terms)
        return cls(lines, tuple((False,) * len(one.stages) for one in lines), False, False)

    def weights(self, cores: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Make the weights of all stages, differentiable, as views of the cores where they can be.

        A weight that happens to lie with channels last would lay out the result so.
        """
        made = [weight for one in self.lines for weight in one.weights(cores)]
        return tuple(made if self.last else [w.contiguous() if is_last(w) else w for w in made])

    def laid_out(self, cores: Mapping[str, Tensor], shape: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Make the weights of all stages as the library wants them."""
        # a core's own layout is to leave no trace in the rounding of what is made of it
        cores = {name: core.contiguous() for name, core in cores.items()}
        found = []
        for one, packed in zip(self.lines, self.packed):
            for place, (stage, weight) in enumerate(zip(one.stages, one.weights(cores))):
                if packed[place]:
                    seen = (shape[0], weight.shape[1] * stage.call.groups, *shape[2:])
                    found.append(pack(weight, stage.call, seen))
                elif self.last or (self.between and 0 < place < len(packed) - 1):
                    found.append(laid_last(weight))
                else:
                    found.append(weight.contiguous())
        return tuple(found)

    def run(self, weights: tuple[Tensor, ...], bias: Tensor | None, x: Tensor) -> Tensor:
        """Run all lines on `x[b, i, ..]` and add them up."""
        if bias is None:
            return self._unbiased(x, *weights)
        return self._biased(x, *weights, bias)

    def source(self, bias: bool) -> str:
        """Return the source that runs."""
        return emit(self, len(self.lines[0].stages[0].call.stride), bias)

    @cached_property
    def _biased(self) -> Callable[..., Tensor]:
        return function(self.source(True))

    @cached_property
    def _unbiased(self) -> Callable[..., Tensor]:
        return function(self.source(False))


def ranked(options: Options, terms: tuple[ConvTerm, ...], asked: Asked) -> tuple[Choice, ...]:
    """Return the ways that are predicted to be fastest, fastest first; they differ in one term.

    A dense weight is rebuilt where one convolution is fastest.
    """
    offers = [_offers(options, term, asked) for term in terms]
    best = tuple(own[0] for own in offers)
    sets = [best]
    for place, own in enumerate(offers):
        sets += [(*best[:place], other, *best[place + 1 :]) for other in own[1:]]
    found = [_choice(options, each, asked) for each in sets]
    return (found[0], *sorted(dict.fromkeys(found[1:]), key=lambda choice: choice.seconds))


def varied(options: Options, choice: Choice, asked: Asked) -> Iterator[Choice]:
    """Yield a choice, and what else its weights and formats could be."""
    yield choice
    betweens = {choice.between, not choice.between and _may_go_between(options, choice, asked)}
    for between in sorted(betweens):
        for packs in (_packed, _all_packed, _none_packed):
            packed = tuple(packs(one, asked, between) for one in choice.lines)
            yield replace(choice, between=between, packed=packed)


Offer = tuple[AnyLine, float]
"""A line with its predicted seconds."""


def _choice(options: Options, offers: tuple[Offer, ...], asked: Asked) -> Choice:
    lines = tuple(line for line, _ in offers)
    found = Choice(lines, (), asked.last, False, sum(seconds for _, seconds in offers))
    between = prod(asked.shape[2:]) >= MANY_PIXELS and _may_go_between(options, found, asked)
    packed = tuple(_packed(one, asked, between) for one in lines)
    return replace(found, packed=packed, between=between)


def _may_go_between(options: Options, choice: Choice, asked: Asked) -> bool:
    first = choice.lines[0]
    free = len(choice.lines) == 1 and asked.packs and not asked.last and options.n in FORMATS
    return free and isinstance(first, Line) and first.enters


def _offers(options: Options, term: ConvTerm, asked: Asked) -> list[Offer]:
    load = load_of(options, asked)
    if term.whole is None:
        return [(term.line, dense_seconds(options, term, asked))]
    found: list[Offer] = []
    for way in ways(term.whole.network, load):
        if len(way.stages) == 1 and options.groups == 1:  # the dense weight needs no padding
            found.append((RebuiltLine.of(term.rebuild, options), way.seconds))
        else:
            found.append((line(options, term.whole, way.merged, way.stages), way.seconds))
    return found or [(term.line, dense_seconds(options, term, asked))]


def load_of(options: Options, asked: Asked) -> Load:
    """Return what a chain has to do, in powers of two."""
    sizes = asked.shape[2:]
    rounded = (prod(sizes), prod(options.sizes(sizes)), asked.shape[0])
    before, after, images = (1 << max(count - 1, 0).bit_length() for count in rounded)
    return Load(images, before, after, options.transposed, asked.keeps)


def dense_seconds(options: Options, term: ConvTerm, asked: Asked) -> float:
    """Return the predicted seconds of one convolution by the dense weight."""
    outputs, inputs, *kernel = term.rebuild.terms[0].shape
    each = outputs // options.groups, inputs
    if options.transposed:
        each = outputs, inputs // options.groups
    return dense_way(options.groups, each[1], each[0], prod(kernel), load_of(options, asked))


def _packed(one: AnyLine, asked: Asked, between: bool) -> tuple[bool, ...]:
    may = _all_packed(one, asked, between)
    if asked.last and asked.shape[0] * prod(asked.shape[2:]) >= MANY_LAST:
        return may
    return tuple(
        can and worth_packing(stage.shape, asked.shape) for can, stage in zip(may, one.stages)
    )


def _all_packed(one: AnyLine, asked: Asked, between: bool) -> tuple[bool, ...]:
    def may(place: int) -> bool:
        stage = one.stages[place]
        inside = not between or 0 < place < len(one.stages) - 1
        plain = not stage.call.turned and stage.passengers == 1
        return asked.packs and inside and plain and can_pack(stage.shape)

    return tuple(may(place) for place in range(len(one.stages)))


def _none_packed(one: AnyLine, asked: Asked, between: bool) -> tuple[bool, ...]:
    return (False,) * len(one.stages)
