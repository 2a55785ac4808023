"""RandLoRA: a sum of scaled random bases, of full rank, that all weights of a model share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from tnc.adapters.equations import legs
from tnc.adapters.method import Method, methods
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Signature, Structure, parse_network

Bases = Literal["uniform", "sparse", "very-sparse"]
Order = Literal["paper", "peft"]


@methods.register("randlora")
@dataclass(frozen=True)
class RandLoRA(Method):
    """`W + s sum_n B_n diag(L_n) A diag(G_n)`, A (r, d) and the B_n (D, r) random and frozen.

    d is the smaller side of W and D the larger one: where W has fewer outputs the sum is
    transposed. There are n = ceil(d / r) bases, so that the sum can have full rank. L (r, n) starts
    at zero, G (n, d) at `1 / max(n, d)`. One A and one B, as large as the largest weight needs,
    serve all weights with the same options: each reads its first rows and columns. Entries are
    uniform, or +1 and -1 with a chance of 1/6 each, or of `1 / (2 sqrt(D))`, else 0; all are
    divided by their deviation. `s = alpha / (r sqrt(n))`; with `order` `peft` it is `alpha / r`,
    the chance is `1 / (2 sqrt(d))` with d the smaller of the largest outputs and inputs, and a B
    that is drawn as (D, n, r) is read as (D, r, n), as PEFT and the authors' code multiply: this
    exchanges adapters with them. `alpha` is 20 r where it is not given. Of a convolution i stands
    for channels and kernel; experts have L and G of their own. Trains n (r + d) parameters: a
    larger rank has fewer. (Albert et al., RandLoRA, ICLR 2025, equation 4.)
    """

    sized_by: ClassVar[str] = ""

    rank: int = 32
    alpha: float | None = None
    bases: Bases = "uniform"
    order: Order = "paper"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PlanError(f"rank is {self.rank}", hint="a random basis has a rank from 1")
        if not 0 <= self.dropout < 1:
            raise PlanError(f"dropout is {self.dropout}", hint="give a share from 0 to below 1")

    def refuses(self, site: Site) -> str:
        small = min(_sides(site.signature))
        if self.rank > small:
            return f"rank {self.rank} is above {small}, the smaller side of {site.signature}"
        return ""

    def structure(self, site: Site) -> Structure:
        outputs, inputs = legs(site.signature)
        stack = "e " if "e" in outputs else ""
        sides = " ".join(name for name in outputs if name != "e"), " ".join(inputs)
        small, large = sides if _turned(site.signature) else sides[::-1]
        bond = "r n" if self.order == "peft" else "n r"
        n = ceil(min(_sides(site.signature)) / self.rank)
        sizes = {**outputs, **inputs, "n": n, "r": self.rank}
        text = f"B[{large} {bond}]! L[{stack}r n] A[r {small}]! G[{stack}n {small}] : "
        text += f"{sides[1]} -> {stack}{sides[0]} | "
        text += " ".join(f"{name}={size}" for name, size in sizes.items())
        return Structure.of(parse_network(text), signature=site.signature)

    def shared(self, sites: Sequence[Site], generator: Generator) -> Mapping[str, Tensor]:
        sides = [_sides(site.signature) for site in sites]
        small, large = max(map(min, sides)), max(map(max, sides))
        counts = sorted({ceil(min(pair) / self.rank) for pair in sides})
        common = large
        if self.order == "peft":
            common = min(max(_sides(site.signature)[side] for site in sites) for side in (0, 1))
        a = self._drawn((self.rank, small), common, generator)
        b = self._drawn((large, counts[-1], self.rank), common, generator)
        if self.order == "paper":
            return {"A": a, "B": b}
        read = {f"B{n}": b[:, :n].reshape(large, self.rank, n) for n in counts}
        return {"A": a, **read}

    def start(self, at: Start) -> Parts:
        shapes, pair = at.structure.shapes, _sides(at.site.signature)
        n = ceil(min(pair) / self.rank)
        a = at.shared["A"][:, : min(pair)]
        if self.order == "paper":
            b = at.shared["B"][: max(pair), :n]
        else:
            b = at.shared[f"B{n}"][: max(pair)]
        cores = {
            "A": a.view(shapes["A"]),
            "B": b.view(shapes["B"]),
            "L": at.zeros("L"),
            "G": torch.full(shapes["G"], 1 / max(n, min(pair))),
        }
        return Parts(cores, shared=("A", "B"))

    def factor(self, site: Site) -> float:
        alpha = 20 * self.rank if self.alpha is None else self.alpha
        if self.order == "peft":
            return alpha / self.rank
        return float(alpha / (self.rank * ceil(min(_sides(site.signature)) / self.rank) ** 0.5))

    def _drawn(self, shape: tuple[int, ...], common: int, generator: Generator) -> Tensor:
        drawn = 2 * torch.rand(shape, generator=generator) - 1
        if self.bases != "uniform":
            share = 1 / 3 if self.bases == "sparse" else float(common) ** -0.5
            drawn = drawn.sgn() * (drawn.abs() < share)
        return drawn / drawn.std().clamp_min(1e-12)


def _sides(signature: Signature) -> tuple[int, int]:
    """Return the outputs and the inputs of one weight, of a stack those of each."""
    return signature.outputs[-1], prod(signature.inputs)


def _turned(signature: Signature) -> bool:
    """Whether the outputs are the smaller side."""
    outputs, inputs = _sides(signature)
    return outputs < inputs
