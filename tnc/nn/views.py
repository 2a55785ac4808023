"""Views: how a structured weight is applied. Linear, embedding; convolutions have a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tnc.derive.cost import Work, rebuild_flops
from tnc.derive.dense import forward
from tnc.derive.gather import gathered
from tnc.errors import KernelError
from tnc.kernels.einsums import Program, lower
from tnc.net import Network, Structure
from tnc.nn.conv_view import ConvView
from tnc.nn.dense import Rebuild, plan_rebuild
from tnc.nn.generated import GeneratedLinear
from tnc.nn.sparse import Kept
from tnc.nn.spectral import SpectralView
from tnc.nn.view import Cores, View


@dataclass(frozen=True)
class LinearTerm:
    """One network of a linear weight, ready to run: pad, split legs, contract, join legs, crop.

    With `dense` set the weight is rebuilt first: that is cheaper for this structure and these rows.
    """

    dense: Rebuild | None
    program: Program
    pad: int
    legs: tuple[int, ...]
    width: int
    covers: int
    takes_bias: bool
    sparse: str = ""
    """The core that is the whole matrix, stored as some of its entries."""
    scatters: bool = False

    def run(
        self, stored: Mapping[str, Tensor | Kept], x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Return the term's part of `x W^T`, plus a bias where the term takes one."""
        core = stored[self.sparse] if self.sparse else None
        if isinstance(core, Kept) and core.multiplies(x):
            found = core.product(x)
            return found if bias is None else found + bias
        cores: Cores = stored  # type: ignore[assignment]
        if self.scatters:
            cores = {n: c.dense() if isinstance(c, Kept) else c for n, c in stored.items()}
        if self.dense is not None:
            return functional.linear(x, self.dense.run(cores), bias)
        if self.pad:
            x = functional.pad(x, (0, self.pad))
        if len(self.legs) > 1:
            x = torch.unflatten(x, -1, self.legs)
        y = self.program.run([x, *(cores[name] for name in self.program.names[1:])], bias)
        if self.program.legs > 1:
            y = y.flatten(-self.program.legs)
        return y if self.covers == self.width else y.narrow(-1, 0, self.width)


def _linear_term(term: Network, structure: Structure, rows: int) -> LinearTerm:
    contraction = forward(term, rows)
    rebuilt = rebuild_flops(term, structure.signature, Work("linear", rows))
    (have,), (want,) = structure.signature.inputs, structure.signature.outputs
    program = lower(contraction)
    dense = rebuilt < contraction.order.flops
    cropped = term.signature.outputs[0] != want
    return LinearTerm(
        plan_rebuild(Structure(structure.signature, (term,))) if dense else None,
        program,
        term.signature.inputs[0] - have,
        tuple(term.size[name] for name in term.equation.inputs[0]),
        want,
        term.signature.outputs[0],
        dense or (program.takes_bias and not cropped),
        _whole_matrix(term, structure),
        bool(structure.stored),
    )


def _whole_matrix(term: Network, structure: Structure) -> str:
    """Return the sparse core that is the whole `[o, i]` weight of a term, empty if none is."""
    first = term.equation.cores[0]
    whole = (*term.equation.output_indices, *term.equation.input_indices)
    alone = len(term.equation.cores) == 1 and first.indices == whole and len(whole) == 2
    return first.name if alone and first.stored and not structure.padded else ""


@dataclass(frozen=True)
class LookUp:
    """One network of a table, ready to be read by row numbers."""

    term: Network
    names: tuple[str, ...]
    program: Program
    width: int

    def run(self, cores: Mapping[str, Tensor | Kept], x: Tensor) -> Tensor:
        """Return the rows of the term's table."""
        digits = _digits(self.term, x)
        y = self.program.run([_pick(self.term, name, cores, digits) for name in self.names])
        if self.program.legs > 1:
            y = y.flatten(-self.program.legs)
        return y if y.shape[-1] == self.width else y.narrow(-1, 0, self.width)


@dataclass(frozen=True)
class LinearView(View):
    """`y = x W^T + b` over the last dimension, any leading ones.

    `rows` is the number of vectors that the order of contraction is chosen for. `transposed` tells
    that the replaced layer stored its weight inputs first (HF Conv1D).
    """

    name: ClassVar[str] = "linear"
    gathers: ClassVar[bool] = True
    rows: int = 128
    transposed: bool = False

    def prepare(self, structure: Structure) -> tuple[LinearTerm, ...]:
        return tuple(_linear_term(term, structure, self.rows) for term in structure.terms)

    def generated(self, structure: Structure) -> GeneratedLinear | None:
        return GeneratedLinear.of(structure)

    def apply(
        self,
        prepared: tuple[LinearTerm, ...],
        cores: Mapping[str, Tensor | Kept],
        bias: Tensor | None,
        x: Tensor,
    ) -> Tensor:
        first = prepared[0]
        if bias is not None and first.takes_bias:
            total, bias = first.run(cores, x, bias), None
        else:
            total = first.run(cores, x)
        for term in prepared[1:]:
            total = total + term.run(cores, x)
        return total if bias is None else total + bias.to(total.dtype)  # autocast

    def attributes(self, structure: Structure) -> dict[str, Any]:
        (outputs,), (inputs,) = structure.signature.outputs, structure.signature.inputs
        if self.transposed:
            return {"nf": outputs, "nx": inputs}
        return {"in_features": inputs, "out_features": outputs}

    def layout(self, weight: Tensor) -> Tensor:
        return weight.t() if self.transposed else weight


@dataclass(frozen=True)
class EmbeddingView(View):
    """A look-up of output legs; the table is never rebuilt. `padding_idx` gets no gradient."""

    name: ClassVar[str] = "embedding"
    gathers: ClassVar[bool] = True
    padding_idx: int | None = None

    def prepare(self, structure: Structure) -> tuple[LookUp, ...]:
        (width,) = structure.signature.inputs
        return tuple(
            LookUp(term, contraction.names, lower(contraction), width)
            for term, contraction in ((term, gathered(term, 128)) for term in structure.terms)
        )

    def apply(
        self,
        prepared: tuple[LookUp, ...],
        cores: Mapping[str, Tensor | Kept],
        bias: Tensor | None,
        x: Tensor,
    ) -> Tensor:
        total = prepared[0].run(cores, x)
        for term in prepared[1:]:
            total = total + term.run(cores, x)
        if self.padding_idx is not None and total.requires_grad:
            padding = (x == self.padding_idx).unsqueeze(-1)
            total = torch.where(padding, total.detach(), total)
        return total

    def attributes(self, structure: Structure) -> dict[str, Any]:
        (rows,), (width,) = structure.signature.outputs, structure.signature.inputs
        return {
            "num_embeddings": rows,
            "embedding_dim": width,
            "padding_idx": self.padding_idx,
            "max_norm": None,
        }


@dataclass(frozen=True)
class StackView(View):
    """A stack of matrices, `y[e, n, o] = x[e, n, i] W[e, o, i]`: the experts of a mixture.

    `transposed` tells that the code keeps it as `(e, i, o)`.
    """

    name: ClassVar[str] = "stack"
    transposed: bool = False

    def prepare(self, structure: Structure) -> Rebuild:
        return plan_rebuild(structure)

    def apply(self, prepared: Rebuild, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        y = torch.matmul(x, prepared.run(cores).transpose(1, 2))
        return y if bias is None else y + bias

    def layout(self, weight: Tensor) -> Tensor:
        return weight.transpose(1, 2) if self.transposed else weight


@dataclass(frozen=True)
class StoredView(View):
    """A weight that its code reads itself: it is rebuilt with its axes in the stored order.

    `order` is the dimension of the map that each stored axis is.
    """

    name: ClassVar[str] = "stored"
    order: tuple[int, ...] = ()

    def prepare(self, structure: Structure) -> tuple[()]:
        return ()

    def apply(self, prepared: Any, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        raise KernelError("a stored weight is read by the model's code, it is not applied")

    def layout(self, weight: Tensor) -> Tensor:
        return weight.permute(self.order)


def view_from_json(data: Mapping[str, Any]) -> View:
    """Read what `View.as_json` wrote. Raises KernelError for an unknown view."""
    known: tuple[type[View], ...] = (
        LinearView,
        ConvView,
        EmbeddingView,
        StackView,
        SpectralView,
        StoredView,
    )
    kinds = {kind.name: kind for kind in known} | {"conv2d": ConvView}  # its name in format 1
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in data.items()
        if key != "view"
    }
    if data.get("view") not in kinds:
        raise KernelError(f"unknown view {data.get('view')!r}", hint=f"known: {sorted(kinds)}")
    return kinds[data["view"]](**options)


def _digits(term: Network, x: Tensor) -> dict[str, Tensor]:
    """Split row numbers into one number for each output leg, last leg fastest."""
    legs = term.equation.output_indices
    found, rest = {}, x
    for name in reversed(legs[1:]):
        found[name] = rest % term.size[name]
        rest = rest // term.size[name]
    found[legs[0]] = rest
    return found


def _pick(
    term: Network, name: str, cores: Mapping[str, Tensor | Kept], digits: Mapping[str, Tensor]
) -> Tensor:
    if name.startswith("one-hot:"):
        leg = name.removeprefix("one-hot:")
        like = next(iter(cores.values()))
        return functional.one_hot(digits[leg], term.size[leg]).to(like.dtype)
    indices = term.equation.core(name).indices
    picked = [n for n in indices if n in digits]
    core = cores[name]
    if isinstance(core, Kept):
        return (
            core.picked({indices.index(n): digits[n] for n in picked}) if picked else core.dense()
        )
    if not picked:
        return core
    if indices[0] == picked[0] and len(picked) == 1:
        found = functional.embedding(digits[picked[0]], core.flatten(1))
        return torch.unflatten(found, -1, core.shape[1:])
    front = [indices.index(n) for n in picked]
    rest = [place for place, n in enumerate(indices) if n not in digits]
    return core.permute(*front, *rest)[tuple(digits[n] for n in picked)]
