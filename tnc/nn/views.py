"""Views: how a structured weight is applied. Linear, convolution, embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tnc.derive.contraction import Contraction
from tnc.derive.cost import Work, rebuild_flops
from tnc.derive.dense import forward
from tnc.derive.gather import gathered
from tnc.errors import KernelError
from tnc.net import Network, Structure
from tnc.nn.conv import convolve
from tnc.nn.dense import rebuild
from tnc.nn.program import lower

Cores = Mapping[str, Tensor]


@dataclass(frozen=True)
class View(ABC):
    """How a layer applies its weight: inert options and pure functions of the cores."""

    name: ClassVar[str]

    @abstractmethod
    def apply(self, structure: Structure, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        """Apply the weight to the layer's input."""

    def attributes(self, structure: Structure) -> dict[str, Any]:
        """Return attributes of the replaced layer that other code may read."""
        return {}

    def layout(self, weight: Tensor) -> Tensor:
        """Bring the dense weight into the layout of the replaced layer."""
        return weight

    def as_json(self) -> dict[str, Any]:
        """Write the view as plain data; `view_from_json` reads it back."""
        return {"view": self.name, **asdict(self)}


@dataclass(frozen=True)
class LinearView(View):
    """`y = x W^T + b` over the last dimension, any leading ones.

    `rows` is the number of vectors that the order of contraction is chosen for. `transposed` tells
    that the replaced layer stored its weight inputs first (HF Conv1D).
    """

    name: ClassVar[str] = "linear"
    rows: int = 128
    transposed: bool = False

    def apply(self, structure: Structure, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for term in structure.terms:
            part = self._term(term, structure, cores, x)
            total = part if total is None else total + part
        assert total is not None
        return total if bias is None else total + bias

    def _term(self, term: Network, structure: Structure, cores: Cores, x: Tensor) -> Tensor:
        if _rebuilds(term, structure, self.rows):
            return functional.linear(x, rebuild(Structure(structure.signature, (term,)), cores))
        (have,), (cover,) = structure.signature.inputs, term.signature.inputs
        if cover != have:
            x = functional.pad(x, (0, cover - have))
        legs = term.equation.inputs[0]
        if len(legs) > 1:
            x = x.unflatten(-1, [term.size[name] for name in legs])
        program = lower(forward(term, self.rows))
        y = program.run([x, *(cores[name] for name in program.names[1:])])
        if program.legs > 1:
            y = y.flatten(-program.legs)
        (want,) = structure.signature.outputs
        return y if y.shape[-1] == want else y.narrow(-1, 0, want)

    def attributes(self, structure: Structure) -> dict[str, Any]:
        (outputs,), (inputs,) = structure.signature.outputs, structure.signature.inputs
        if self.transposed:
            return {"nf": outputs, "nx": inputs}
        return {"in_features": inputs, "out_features": outputs}

    def layout(self, weight: Tensor) -> Tensor:
        return weight.t() if self.transposed else weight


@dataclass(frozen=True)
class Conv2dView(View):
    """A two-dimensional convolution with the options of `nn.Conv2d`.

    `pixels_in` and `pixels_out` are the pixels of one image, for which the chain is chosen.
    """

    name: ClassVar[str] = "conv2d"
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    pixels_in: int = 1024
    pixels_out: int = 1024

    def apply(self, structure: Structure, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        return convolve(self, structure, cores, bias, x)

    def attributes(self, structure: Structure) -> dict[str, Any]:
        channels, *kernel = structure.signature.inputs
        return {
            "in_channels": channels * self.groups,
            "out_channels": structure.signature.outputs[0],
            "kernel_size": tuple(kernel),
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding_mode": self.padding_mode,
        }


@dataclass(frozen=True)
class EmbeddingView(View):
    """A look-up of output legs; the table is never rebuilt. `padding_idx` gets no gradient."""

    name: ClassVar[str] = "embedding"
    padding_idx: int | None = None

    def apply(self, structure: Structure, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for term in structure.terms:
            part = self._term(term, structure, cores, x)
            total = part if total is None else total + part
        assert total is not None
        if self.padding_idx is not None and total.requires_grad:
            padding = (x == self.padding_idx).unsqueeze(-1)
            total = torch.where(padding, total.detach(), total)
        return total

    def _term(self, term: Network, structure: Structure, cores: Cores, x: Tensor) -> Tensor:
        contraction = gathered(term, 128)
        program = lower(contraction)
        digits = _digits(term, x)
        operands = [_pick(term, name, cores, digits) for name in contraction.names]
        y = program.run(operands)
        if program.legs > 1:
            y = y.flatten(-program.legs)
        (want,) = structure.signature.inputs
        return y if y.shape[-1] == want else y.narrow(-1, 0, want)

    def attributes(self, structure: Structure) -> dict[str, Any]:
        (rows,), (width,) = structure.signature.outputs, structure.signature.inputs
        return {
            "num_embeddings": rows,
            "embedding_dim": width,
            "padding_idx": self.padding_idx,
            "max_norm": None,
        }


def view_from_json(data: Mapping[str, Any]) -> View:
    """Read what `View.as_json` wrote. Raises KernelError for an unknown view."""
    kinds = {kind.name: kind for kind in (LinearView, Conv2dView, EmbeddingView)}
    options = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in data.items()
        if key != "view"
    }
    if data.get("view") not in kinds:
        raise KernelError(f"unknown view {data.get('view')!r}", hint=f"known: {sorted(kinds)}")
    return kinds[data["view"]](**options)


def _rebuilds(term: Network, structure: Structure, rows: int) -> bool:
    work = Work("linear", rows)
    return rebuild_flops(term, structure.signature, work) < forward(term, rows).order.flops


def _digits(term: Network, x: Tensor) -> dict[str, Tensor]:
    """Split row numbers into one number for each output leg, last leg fastest."""
    legs = term.equation.output_indices
    found, rest = {}, x
    for name in reversed(legs[1:]):
        found[name] = rest % term.size[name]
        rest = rest // term.size[name]
    found[legs[0]] = rest
    return found


def _pick(term: Network, name: str, cores: Cores, digits: Mapping[str, Tensor]) -> Tensor:
    if name.startswith("one-hot:"):
        leg = name.removeprefix("one-hot:")
        like = next(iter(cores.values()))
        return functional.one_hot(digits[leg], term.size[leg]).to(like.dtype)
    indices = term.equation.core(name).indices
    picked = [n for n in indices if n in digits]
    if not picked:
        return cores[name]
    if indices[0] == picked[0] and len(picked) == 1:
        return functional.embedding(digits[picked[0]], cores[name].flatten(1)).unflatten(
            -1, cores[name].shape[1:]
        )
    front = [indices.index(n) for n in picked]
    rest = [place for place, n in enumerate(indices) if n not in digits]
    return cores[name].permute(*front, *rest)[tuple(digits[n] for n in picked)]


def contraction_of(structure: Structure, rows: int) -> tuple[Contraction, ...]:
    """Return the forward contractions of a structure, for printing."""
    return tuple(forward(term, rows) for term in structure.terms)
