"""LoRA-GA: the first step of the factors is the best low-rank part of the full step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from tnc.adapters.equations import most, network
from tnc.adapters.method import Parts, Start, methods
from tnc.adapters.methods.lora import LoRA
from tnc.decide.site import Site
from tnc.net import Structure, parse_network

Direction = Literal["ArB2r", "A2rBr", "ArBr", "random"]
Scale = Literal["stable", "gd", "unit", "weight"]


@methods.register("lora-ga")
@dataclass(frozen=True)
class LoRAGA(LoRA):
    """`W + s (B A - B0 A0)` with B0, A0 the start: singular vectors of the mean gradient G.

    With `G = U S V^T`, direction `ArB2r` takes `A = V[:r]^T` and `B = U[:, r:2r]`; `A2rBr` the
    other way; `ArBr` B from the even and A from the odd ones of the first 2r; `random` disjoint
    random halves. Then the first SGD step of W is a multiple of the best rank-2r part of G. `scale`
    multiplies both: `stable` by `o^(1/4) / sqrt(gamma)`, `gd` by 1 / s, `unit` by 1, `weight` by
    the root of the mean of the first r singular values of W over s. The base is not changed: the
    start is kept as frozen factors, so merging is of rank 2r. Trains r (o + i) parameters.
    (Wang et al., LoRA-GA, NeurIPS 2024, in the authors' form.)
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)

    direction: Direction = "ArB2r"
    scale: Scale = "stable"
    gamma: float = 16.0

    def refuses(self, site: Site) -> str:
        if site.op == "experts":
            return "its experts have gradients of their own"
        if 2 * self.rank > most(site.signature):
            return f"twice the rank {self.rank} is above {most(site.signature)}"
        return super().refuses(site)

    def structure(self, site: Site) -> Structure:
        first = network(site.signature, ("B", "o r"), ("A", "r i"), r=self.rank)
        start = network(site.signature, ("B0!", "o s"), ("A0!", "s i"), s=self.rank)
        return Structure.of(parse_network(first), parse_network(start), signature=site.signature)

    def start(self, at: Start) -> Parts:
        left, _, right = torch.linalg.svd(at.flat(at.given("gradient")), full_matrices=False)
        ours, theirs = self._halves(at)
        size = self._size(at)
        b, a = left[:, ours] * size, right[theirs] * size
        shape = at.structure.shapes
        return Parts(
            {
                "B": b.reshape(shape["B"]),
                "A": a.reshape(shape["A"]),
                "B0": -b.reshape(shape["B0"]),
                "A0": a.reshape(shape["A0"]),
            }
        )

    def _halves(self, at: Start) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the places of the singular vectors that B and A begin with."""
        first, both = torch.arange(self.rank), torch.arange(2 * self.rank)
        if self.direction == "random":
            both = torch.randperm(2 * self.rank, generator=at.generator)
        if self.direction == "ArBr":
            return both[::2], both[1::2]
        if self.direction == "A2rBr":
            return first, both[self.rank :]
        return both[self.rank :], both[: self.rank]

    def _size(self, at: Start) -> float:
        factor = self.factor(at.site)
        if self.scale == "stable":
            return float(at.matrix.shape[0] ** 0.25 / self.gamma**0.5)
        if self.scale == "gd":
            return 1 / factor
        if self.scale == "weight":
            values = torch.linalg.svdvals(at.matrix)[: self.rank]
            return float((values.mean() / factor).sqrt())
        return 1.0
