"""One convolution held by a structure, and those that compute it: ours, tensorly-torch's, dense."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tnc.derive.cost import Work, cost
from tnc.net import Signature, Structure
from tnc.nn import ConvView, StructuredLayer
from tnc.structures import families

IMPLEMENTATIONS = {"tucker": 2, "cp": 3, "tensor-train": 2, "low-rank": 0}


@dataclass(frozen=True)
class Cell:
    """Hold one 3x3 convolution with a structure."""

    channels: int
    edge: int
    batch: int
    family: str
    part: int

    @property
    def name(self) -> str:
        """Name the cell, as in `64x56 tucker r=C/2 b=16`."""
        return f"{self.channels}x{self.edge} {self.family} r=C/{self.part} b={self.batch}"

    @cached_property
    def structure(self) -> Structure:
        """The structure at its ranks."""
        signature = Signature((self.channels,), (self.channels, 3, 3))
        rank = self.channels // self.part * (2 if self.family == "cp" else 1)
        template = families.get(self.family)().template(signature)
        return template.at({name: min(rank, bound) for name, bound in template.bounds})

    @property
    def flop_ratio(self) -> float:
        """FLOPs of the dense convolution by those of the structure's cheapest chain."""
        pixels = self.edge**2
        work = Work("conv", pixels, pixels)
        return 2 * pixels * 9 * self.channels**2 / cost(self.structure, work).flops


@dataclass(frozen=True)
class Contender:
    """Hold a function of an image, what it learns, and its gradients in our order from the dense.

    `gradients` takes those of our cores by name and returns those of the parameters.
    """

    function: Callable[[Tensor], Tensor]
    parameters: tuple[Tensor, ...]
    gradients: Callable[[Mapping[str, Tensor]], list[Tensor]]

    def call(self, x: Tensor, seed: Tensor, train: bool) -> Callable[[], Any]:
        """Return a call of the forward, or of the forward with all gradients."""
        function = self.function
        if not train:
            return lambda: function(x)
        x = x.detach().requires_grad_()
        wanted = (x, *self.parameters)
        return lambda: (y := function(x), torch.autograd.grad(y, wanted, seed))


def contenders(
    cell: Cell, cores: Mapping[str, Tensor], weight: Tensor
) -> Iterator[tuple[str, Callable[[], Contender]]]:
    """Yield the contenders of a cell by name: they hold the same cores, or the dense weight."""

    def ours() -> Contender:
        layer = layer_of(cell, cores)
        return Contender(
            layer, tuple(layer.cores.values()), lambda of: [of[n] for n in layer.cores]
        )

    def dense() -> Contender:
        made = nn.Conv2d(cell.channels, cell.channels, 3, padding=1, bias=False)
        made.weight.data = weight.clone()
        return Contender(made, (made.weight,), lambda of: [of["weight"]])

    def tensorly(implementation: str) -> Callable[[], Contender]:
        def make() -> Contender:
            made, parameters, arranged = _tensorly(cell, cores, implementation)
            return Contender(made, parameters, arranged)

        return make

    yield "ours", ours
    for implementation in ("factorized", "reconstructed", "mobilenet")[
        : IMPLEMENTATIONS[cell.family]
    ]:
        yield f"tensorly {implementation}", tensorly(implementation)
    yield "dense", dense


def layer_of(cell: Cell, cores: Mapping[str, Tensor] | None) -> StructuredLayer:
    """Return our layer of a cell, with given cores or drawn ones."""
    pixels = cell.edge**2
    view = ConvView(padding=(1, 1), pixels_in=pixels, pixels_out=pixels)
    if cores is not None:
        return StructuredLayer(cell.structure, view, {n: t.clone() for n, t in cores.items()})
    generator = torch.Generator().manual_seed(0)
    return StructuredLayer.initialised(cell.structure, view, 0.02, generator=generator)


def _tensorly(
    cell: Cell, cores: Mapping[str, Tensor], implementation: str
) -> tuple[nn.Module, tuple[Tensor, ...], Callable[[Mapping[str, Tensor]], list[Tensor]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tltorch import FactorizedConv
        from tltorch.factorized_tensors import CPTensor, TTTensor, TuckerTensor

    def arranged(of: Mapping[str, Tensor]) -> list[Tensor]:
        if cell.family == "cp":
            return [of[name] for name in "OIHW"]
        if cell.family == "tucker":
            return [of["G"], of["U1"], of["V1"].T]
        return [of["G1"][None], of["G2"], of["G3"], of["G4"][..., None]]

    c = cell.channels
    parts = [nn.Parameter(part.clone().contiguous()) for part in arranged(cores)]
    if cell.family == "cp":
        rank = parts[0].shape[1]
        tensor: Any = CPTensor(torch.ones(rank), parts, shape=(c, c, 3, 3), rank=rank)
    elif cell.family == "tucker":
        kernel = [nn.Parameter(torch.eye(3), requires_grad=False) for _ in range(2)]
        tensor = TuckerTensor(
            parts[0], [*parts[1:], *kernel], shape=(c, c, 3, 3), rank=tuple(parts[0].shape)
        )
    else:
        ranks = (1, *(part.shape[-1] for part in parts))
        tensor = TTTensor(parts, shape=(c, 3, 3, c), rank=ranks)
    made = FactorizedConv(
        c,
        c,
        3,
        order=2,
        padding=1,
        bias=False,
        factorization=tensor,
        implementation=implementation,
    )
    return made, tuple(parts), arranged
