"""Tensor contraction and tensor regression: layers on activation tensors (Kossaifi, 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from tnc.errors import KernelError
from tnc.net import Signature, Structure, parse_network
from tnc.nn.layer import StructuredLayer
from tnc.nn.linear_view import LinearView


class TensorContraction(nn.Module):
    """`y[b, s1, .., sN] = sum x[b, i1, .., iN] prod_n U_n[s_n, i_n] (+ bias)`, one matrix a mode.

    `shape` are the modes of the activation after the batch, `ranks` what they become. The map is a
    Kronecker product that is never built: the modes are contracted one after another.

    >>> import torch
    >>> TensorContraction((8, 6), (3, 2))(torch.ones(5, 8, 6)).shape
    torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        shape: Sequence[int],
        ranks: Sequence[int],
        bias: bool = False,
        std: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(shape) != len(ranks) or not shape or min(*shape, *ranks, 1) < 1:
            raise KernelError(
                f"ranks {tuple(ranks)} do not fit modes {tuple(shape)}",
                hint="give one positive rank for each mode",
            )
        self.shape, self.ranks = tuple(shape), tuple(ranks)
        numbers = range(1, len(self.shape) + 1)
        cores = " ".join(f"U{k}[s{k} i{k}]" for k in numbers)
        ins, outs = (" ".join(f"{side}{k}" for k in numbers) for side in "is")
        sizes = [f"i{k}={n} s{k}={r}" for k, n, r in zip(numbers, self.shape, self.ranks)]
        network = parse_network(f"{cores} : ({ins}) -> ({outs}) | {' '.join(sizes)}")
        self.layer = StructuredLayer.initialised(
            Structure.of(network),
            LinearView(),
            std or prod(self.shape) ** -0.5,
            bias=torch.zeros(prod(self.ranks)) if bias else None,
            generator=generator,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)).unflatten(1, self.ranks)  # type: ignore[no-any-return]


class TensorRegression(nn.Module):
    """`y[b, o] = <W[o], x[b]> + bias` with W of any structure, rebuilt only where that is cheaper.

    `shape` are the modes of the activation after the batch, kept apart as the legs of W: pass a
    structure whose signature has one output axis and one input axis of `prod(shape)` entries, such
    as `regression_structure` makes.

    >>> import torch
    >>> made = regression_structure((8, 6), 4, (3, 2), outputs_rank=2)
    >>> TensorRegression((8, 6), 4, made)(torch.ones(5, 8, 6)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        structure: Structure,
        bias: bool = True,
        std: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        wanted = Signature((outputs,), (prod(shape),))
        if structure.signature != wanted:
            raise KernelError(
                f"the structure is {structure.signature}, the regression is {wanted}",
                where=str(structure),
                hint="group the input legs into one axis: ': (i1 i2) -> o'",
            )
        self.shape = tuple(shape)
        self.layer = StructuredLayer.initialised(
            structure,
            LinearView(),
            std or prod(self.shape) ** -0.5,
            bias=torch.zeros(outputs) if bias else None,
            generator=generator,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))  # type: ignore[no-any-return]


def regression_structure(
    shape: Sequence[int], outputs: int, ranks: Sequence[int], outputs_rank: int
) -> Structure:
    """Return the Tucker structure of a regression: `G[t s1 ..] V[o t] U1[s1 i1] ..`."""
    numbers = range(1, len(shape) + 1)
    factors = " ".join(f"U{k}[s{k} i{k}]" for k in numbers)
    inner = " ".join(f"s{k}" for k in numbers)
    legs = " ".join(f"i{k}" for k in numbers)
    sizes = [f"i{k}={n} s{k}={r}" for k, n, r in zip(numbers, shape, ranks)]
    return Structure.of(
        parse_network(
            f"V[o t] G[t {inner}] {factors} : ({legs}) -> o "
            f"| o={outputs} t={outputs_rank} {' '.join(sizes)}"
        )
    )
