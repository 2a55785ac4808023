"""The contenders of one cell, all on the same numbers, and the dense oracle that they must meet."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kernels.cells import Cell
from benchmarks.kernels.place import Place
from benchmarks.kernels.timing import library
from tnc.derive.contraction import index_letters
from tnc.derive.dense import forward
from tnc.kernels.applied import measures, tuning
from tnc.net import Network
from tnc.nn import LinearView, StructuredLayer

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Numbers:
    """Hold the input, the gradient of the output, cores by name, and what the oracle says of them.

    `output` and the gradients are those of the rebuilt dense weight; `core_gradients` are None for
    a forward only.
    """

    x: Tensor
    seed: Tensor
    cores: Mapping[str, Tensor]
    weight: Tensor
    output: Tensor
    x_gradient: Tensor | None = None
    core_gradients: Mapping[str, Tensor] | None = None
    place: Place = field(default_factory=Place)


@dataclass(frozen=True)
class Contender:
    """Hold a function of the input, the parameters that it differentiates, and their oracle."""

    function: Function
    parameters: tuple[Tensor, ...]
    gradients: Callable[[Numbers], Sequence[Tensor]]

    def call(self, numbers: Numbers, train: bool) -> Callable[[], object]:
        """Return one call: a forward, or a forward with the gradients of input and parameters."""
        function, x, seed = self.function, numbers.x, numbers.seed
        if not train:
            return lambda: function(x)
        x = x.detach().requires_grad_()
        wanted = (x, *self.parameters)
        return lambda: (y := function(x), torch.autograd.grad(y, wanted, seed))

    def check(self, name: str, numbers: Numbers, train: bool) -> None:
        """Compare with the oracle. Raises SystemExit for a wrong result."""
        got: Any = self.call(numbers, train)()
        got = (got[0].detach(), got[1]) if train else got
        pairs = [("output", got[0] if train else got, numbers.output)]
        if train:
            assert numbers.x_gradient is not None
            expected = (numbers.x_gradient, *self.gradients(numbers))
            pairs += [(f"gradient {n}", *pair) for n, pair in enumerate(zip(got[1], expected))]
        for what, value, wanted in pairs:
            error = float((value.detach().to(wanted.dtype) - wanted).norm() / wanted.norm())
            if value.shape != wanted.shape or not error <= numbers.place.limit:
                raise SystemExit(f"{name}: {what} is wrong, relative error {error:.2g}")


def numbers(cell: Cell, train: bool, place: Place | None = None) -> Numbers:
    """Draw a layer and an input, and let the dense weight say what is right.

    On the CPU in float32, as there is time for; elsewhere in float64, of the rounded cores.
    """
    place = place or Place()
    generator = torch.Generator().manual_seed(0)
    drawn = _layer(cell, None)
    (i,), (o,) = cell.structure.signature.inputs, cell.structure.signature.outputs
    x, seed = (
        torch.randn(cell.batch, width, generator=generator).to(place.device, place.dtype)
        for width in (i, o)
    )
    names = list(drawn.cores)
    cores = {
        name: drawn.cores[name].detach().clone().to(place.device, place.dtype) for name in names
    }
    exact = torch.float32 if place == Place() else torch.float64
    layer = _layer(cell, {name: core.to(exact) for name, core in cores.items()})
    with library(place.backends[0]):
        weight = layer.weight
        output = functional.linear(x.to(exact), weight.detach())
        if not train:
            return Numbers(x, seed, cores, weight.detach(), output, place=place)
        wide = seed.to(exact)
        found = torch.autograd.grad(weight, [layer.cores[n] for n in names], wide.T @ x.to(exact))
        x_gradient = wide @ weight.detach()
    gradients = dict(zip(names, found))
    return Numbers(x, seed, cores, weight.detach(), output, x_gradient, gradients, place)


def _layer(cell: Cell, cores: Mapping[str, Tensor] | None) -> StructuredLayer:
    view = LinearView(rows=cell.batch)
    if cores is not None:
        return StructuredLayer(cell.structure, view, {n: t.clone() for n, t in cores.items()})
    generator = torch.Generator().manual_seed(0)
    return StructuredLayer.initialised(cell.structure, view, 0.02, generator=generator)


def ours(cell: Cell, numbers: Numbers) -> Contender:
    """Return a layer of its own, so that what it has chosen to do is no other contender's."""
    layer = _layer(cell, numbers.cores)
    names = tuple(layer.cores)
    return Contender(
        layer,
        tuple(layer.cores[name] for name in names),
        lambda numbers: [_of(numbers)[name] for name in names],
    )


def kept(cell: Cell, numbers: Numbers) -> Contender:
    """Return the layer untiled, as plain torch calls whose intermediates autograd keeps.

    They are pairwise einsums in the order of the fewest FLOPs.
    """
    layer = _layer(cell, numbers.cores)
    names = tuple(layer.cores)
    parameters = tuple(layer.cores[name] for name in names)
    function = _pairwise(cell, layer.cores)
    return Contender(function, parameters, lambda numbers: [_of(numbers)[name] for name in names])


@contextmanager
def keeping() -> Iterator[None]:
    """Let layers that are first called here keep all values that this makes faster."""
    with tuning("measure" if measures() else "model", float("inf")):
        yield


def _pairwise(cell: Cell, cores: Mapping[str, Tensor]) -> Function:
    contraction = forward(cell.term, cell.batch)
    given, order = [cores[name] for name in contraction.names[1:]], contraction.order
    slots, steps = list(order.operands), []
    for step in order.steps:
        letters = index_letters((slots[step.left], slots[step.right]))
        parts = (slots[step.left], slots[step.right], step.indices)
        left, right, result = ("".join(letters[name] for name in part) for part in parts)
        steps.append((step.left, step.right, f"{left},{right}->{result}"))
        slots.append(step.indices)
    legs = tuple(cell.term.size[name] for name in cell.term.equation.inputs[0])

    def function(x: Tensor) -> Tensor:
        made = [x.view(-1, *legs), *given]
        for left, right, spec in steps:
            made.append(torch.einsum(spec, made[left], made[right]))
        return made[-1].flatten(1)

    return function


def einsum(cell: Cell, numbers: Numbers, compiled: bool = False) -> Contender:
    """Return one `torch.einsum` of all operands, in an order searched at each call."""
    contraction = forward(cell.term, cell.batch)
    letters = index_letters((*contraction.operands, contraction.output))
    texts = ["".join(letters[n] for n in operand) for operand in contraction.operands]
    spec = f"{','.join(texts)}->{''.join(letters[n] for n in contraction.output)}"
    legs = tuple(cell.term.size[name] for name in cell.term.equation.inputs[0])
    names = contraction.names[1:]
    cores = tuple(numbers.cores[name].clone().requires_grad_() for name in names)

    def function(x: Tensor) -> Tensor:
        return torch.einsum(spec, x.view(-1, *legs), *cores).flatten(1)

    made = torch.compile(function, dynamic=False) if compiled else function
    return Contender(made, cores, lambda numbers: [_of(numbers)[name] for name in names])


def dense(numbers: Numbers) -> Contender:
    """Return the dense layer."""
    weight = numbers.weight.to(numbers.x.dtype, copy=True).requires_grad_()
    exact = numbers.weight.dtype
    return Contender(
        lambda x: functional.linear(x, weight),
        (weight,),
        lambda numbers: [numbers.seed.to(exact).T @ numbers.x.to(exact)],
    )


def tensorly_torch(cell: Cell, numbers: Numbers, implementation: str) -> Contender | None:
    """Return tensorly-torch's layer of the same modes and ranks; None where it has no such one."""
    if cell.family == "block-tensor-train":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tltorch import FactorizedLinear

        tensor, shape = _factorized(cell, numbers.cores)
        outs, ins = shape
        made = FactorizedLinear(
            ins, outs, bias=False, factorization=tensor, implementation=implementation
        )
    parameters = [p for p in made.parameters() if p.requires_grad]
    return Contender(
        made, tuple(parameters), lambda numbers: _arranged(cell.family, _of(numbers), cell.term)
    )


def _factorized(
    cell: Cell, cores: Mapping[str, Tensor]
) -> tuple[Any, tuple[tuple[int, ...], tuple[int, ...]]]:
    from tltorch.factorized_tensors.tensorized_matrices import (
        BlockTT,
        CPTensorized,
        TuckerTensorized,
    )

    term = cell.term
    outs = tuple(term.size[name] for name in term.equation.outputs[0])
    ins = tuple(term.size[name] for name in term.equation.inputs[0])
    parts = [
        nn.Parameter(part.clone(memory_format=torch.contiguous_format))
        for part in _arranged(cell.family, cores, term)
    ]
    shape = (outs, ins)
    if cell.family == "tensor-train":
        return BlockTT(parts, shape, rank=(1, *(p.shape[-1] for p in parts))), shape
    if cell.family == "tucker":
        return TuckerTensorized(parts[0], parts[1:], shape, rank=tuple(parts[0].shape)), shape
    ones = parts[0].detach().new_ones(cell.ranks[0])  # a buffer: the same parameters on both sides
    return CPTensorized(ones, parts, shape, rank=cell.ranks[0]), shape


def _arranged(family: str, cores: Mapping[str, Tensor], term: Network) -> list[Tensor]:
    """Lay out cores (or their gradients) as tensorly-torch holds them, in the order it has them.

    A train's cores have both ranks; Tucker: the core, then factors [mode, rank]; CP and low rank:
    factors [mode, rank].
    """
    if family == "tensor-train":
        names = [core.name for core in term.equation.cores]
        first, *middle, last = (cores[name] for name in names)
        return [first[None], *middle, last[..., None]]
    if family == "low-rank":
        return [cores["B"], cores["A"].T]
    legs = (*term.equation.output_indices, *term.equation.input_indices)
    factors = []
    for leg in legs:
        (core,) = (c for c in term.equation.cores if leg in c.indices)
        value = cores[core.name]
        factors.append(value if core.indices[0] == leg else value.T)
    return [cores["G"], *factors] if family == "tucker" else factors


def _of(numbers: Numbers) -> Mapping[str, Tensor]:
    assert numbers.core_gradients is not None
    return numbers.core_gradients
