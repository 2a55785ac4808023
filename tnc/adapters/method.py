"""What an adaptation method is: a delta beside a frozen weight, and what it does in training.

A method says, for one weight W, which structure the delta has (cores may be frozen: `B[o r]!`),
with what values it starts, and by which factor it is multiplied. Everything else has a default: the
delta is added to what the weight computes, nothing happens to gradients, and merging adds it to W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Generator, Tensor

from tnc.adapters.equations import most
from tnc.adapters.start import Parts, Start
from tnc.decide.adapters import methods as REGISTRY
from tnc.decide.site import Site
from tnc.errors import TncError
from tnc.net import Structure
from tnc.registry import Registry

if TYPE_CHECKING:
    from tnc.adapters.delta import Delta
    from tnc.adapters.training_step import TrainingStep

SIZES = tuple(sorted({*range(1, 5), *(k << n for n in range(1, 16) for k in (2, 3))}))
"""Ranks that a budget may choose: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of an adapted layer: its input and what the base made of it, its bias included.

    `read` returns the base weight in its stored layout; it is rebuilt where the base is structured.
    `rest` are the call's other arguments by name, such as `output_size`.
    """

    x: Tensor
    y: Tensor
    bias: Tensor | None
    read: Callable[[], Tensor]
    rest: Mapping[str, Any] = field(default_factory=dict)


class Method(ABC):
    """An adaptation method; concrete ones are frozen dataclasses whose fields are options.

    A delta starts such that the model computes what it did, unless `offset` says otherwise. Hooks
    of training act when an optimizer is followed (`tnc.adapters.following`); what they remember
    from step to step is in `delta.memory`, saved with the optimizer and not with the adapter.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Which of `gradient`, `moment` and `original` the start is computed from."""

    offset: ClassVar[str] = ""
    """Why the adapted model differs from the base at the start; empty where it does not."""

    compressed: ClassVar[str] = ""
    """Why a base that is made of cores cannot be adapted; empty when it can."""

    @property
    def sequential(self) -> bool:
        """Whether starts are computed one layer after another; see `Start.original`."""
        return False

    sized_by: ClassVar[str] = "rank"
    """The option that a parameter budget chooses weight by weight, where the method has it."""

    def refuses(self, site: Site) -> str:
        """Say why a weight cannot be adapted; empty when it can."""
        return ""

    @abstractmethod
    def structure(self, site: Site) -> Structure:
        """Return the delta of a weight that is not refused."""

    def shared(self, sites: Sequence[Site], generator: Generator) -> Mapping[str, Tensor]:
        """Draw what the deltas of one adapter have in common, for all weights of this method.

        It is in `Start.shared` of each; frozen cores that are views of it take no memory of their
        own, in the model and in files.
        """
        return {}

    @abstractmethod
    def start(self, at: Start) -> Parts:
        """Return the first values."""

    def factor(self, site: Site) -> float:
        """Return what the delta is multiplied by (LoRA's `alpha / rank`)."""
        return 1.0

    def tensors(self, delta: Delta) -> Mapping[str, Tensor]:
        """Return every core of the delta whole, as it acts: in calls, merging and export.

        A method may compute cores from extras, such as mixing weights from logits: it overrides
        this, and such cores are `=` or `!` in the structure, so that none is trained by itself.
        """
        return delta.layer.tensors()

    def trained(self, site: Site, weight: Callable[[], Tensor]) -> int:
        """Count what a delta trains; `weight` reads the weight as a map, where it depends on it.

        Extras are to be added by the methods that have some.
        """
        made = self.structure(site)
        counts = {name: made.stored.get(name, prod(shape)) for name, shape in made.shapes.items()}
        return sum(count for name, count in counts.items() if made.kinds[name] == "trainable")

    @property
    def sized(self) -> bool:
        """Whether a parameter budget can choose the method's size."""
        return self.sized_by in getattr(type(self), "__dataclass_fields__", {})

    def sizes(self, site: Site) -> tuple[Method, ...]:
        """Return the method at each size that a budget may choose for a weight, smallest first."""
        found = []
        for size in SIZES:
            if size > most(site.signature):
                break
            try:
                made: Method = replace(self, **{self.sized_by: size})  # type: ignore[type-var]
            except TncError:  # not every rank is one of every method's
                continue
            if not made.refuses(site):
                found.append(made)
        return tuple(found)

    def kept(self, energy: Sequence[float]) -> float:
        """Return what the delta can reach of `energy`, squared singular values, largest first."""
        return float(sum(energy[: getattr(self, self.sized_by, len(energy))]))

    def rows(self, delta: Delta, weight: Tensor) -> Tensor | None:
        """Return what every row of `weight + delta` is multiplied by; None where by nothing.

        The weight is in its stored layout, and frozen: no gradient is to flow into it.
        """
        return None

    def added(self, delta: Delta, call: Call) -> Tensor:
        """Return what is added to the output of a layer.

        Methods that leave this as it is, and whose delta is a sum of chains, are applied by
        products that do it in fewer passes.
        """
        scaled = self.rows(delta, call.read()) if self.scales_rows() else None
        if scaled is None:
            return delta.applied(call.x, **call.rest)
        y, bias = call.y, call.bias
        shape = [1] * y.dim()
        shape[-1 if delta.site.op == "linear" else -len(delta.site.signature.inputs)] = -1
        scaled = scaled.reshape(shape).to(y.dtype)
        plain = y if bias is None else y - bias.reshape(shape)
        return (scaled - 1) * plain + scaled * delta.applied(call.x, **call.rest)

    def change(self, delta: Delta, weight: Tensor) -> Tensor:
        """Return what is added to the weight, in its stored layout: what merging adds."""
        scaled = self.rows(delta, weight)
        if scaled is None:
            return delta.dense()
        mapped = delta.mapped(weight + delta.dense())
        whole = scaled.reshape(-1, *[1] * (mapped.dim() - 1)).to(mapped.dtype) * mapped
        return whole.permute(delta.site.unordered) - weight

    @classmethod
    def adds_delta(cls) -> bool:
        """Whether a layer's output is that of `weight + delta`, its rows perhaps multiplied."""
        return cls.added is Method.added

    @classmethod
    def plain(cls) -> bool:
        """Whether merging adds the delta itself to the weight itself, rows perhaps multiplied."""
        return cls.change is Method.change and cls.base is Method.base

    @classmethod
    def scales_rows(cls) -> bool:
        """Whether the method multiplies rows."""
        return cls.rows is not Method.rows

    def base(self, delta: Delta, weight: Tensor) -> Tensor:
        """Return what stands for the stored weight while the adapter is active: itself."""
        return weight

    def perturbation(self, delta: Delta) -> Tensor | None:
        """Return what is added to the weight in training's forward passes alone, as a map."""
        return None

    def unfit(self, optimizer: torch.optim.Optimizer) -> str:
        """Say why an optimizer cannot train the delta; empty when it can."""
        return ""

    def divided(self) -> str:
        """Say why deltas cannot be divided between processes (FSDP); empty when they can."""
        return ""

    def memory_bytes(self, site: Site) -> int:
        """Return the bytes that training keeps in `delta.memory` beside the optimizer's state."""
        return 0

    def gradients_(self, delta: Delta, at: TrainingStep) -> None:  # noqa: B027
        """Change the gradients of the delta's parameters, before the optimizer's step."""

    def penalty(self, delta: Delta, at: TrainingStep) -> Tensor | None:
        """Return a term of the loss that depends on the delta alone; its gradient is added."""
        return None

    def proximal_(self, delta: Delta, at: TrainingStep) -> None:  # noqa: B027
        """Change the delta's parameters after the optimizer's step."""

    def event_(self, delta: Delta, at: TrainingStep) -> str:
        """Do what is to be done after so many steps; say what was done, or ''.

        Optimizer state of what changed is moved (`tnc.adapters.exchanging`), or dropped.
        """
        return ""


methods: Registry[type[Method]] = REGISTRY


def refuses_rows(site: Site) -> str:
    """Say why the rows of a weight cannot be multiplied; empty when they can."""
    ops = {use.op for use in site.uses}
    if not ops <= {"linear", "conv"}:
        return f"row magnitudes are for linear and convolution weights, not for {min(ops)}"
    if site.groups > 1 and site.transposed:
        return "the rows of a transposed convolution in groups are not those of its weight"
    return ""


def refuses_inputs(site: Site) -> str:
    """Say why the second moment of a weight's inputs is not measured; empty when it is."""
    if site.is_complex or site.op == "spectral":
        return "second moments are of the inputs of real products, this one is spectral"
    if site.groups > 1:
        return "the inputs of a convolution in groups are not measured"
    return ""
