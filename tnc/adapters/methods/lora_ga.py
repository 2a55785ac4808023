"""LoRA-GA: the first step of the factors is the best low-rank part of the full step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tnc.adapters.equations import most, with_start
from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.spectra import leading
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure

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
    start is kept as frozen factors, so merging is of rank 2r. `niter` takes the vectors by so many
    randomised power iterations (the authors use 4). Of a convolution the matrix is (o, i kernel): A
    holds the kernel. Every expert has its own vectors. Trains r (o + i) parameters. (Wang, Yu, Li,
    LoRA-GA, NeurIPS 2024, theorem 3.1 and section 3.3, in the authors' form.)
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)

    direction: Direction = "ArB2r"
    scale: Scale = "stable"
    gamma: float = 16.0
    niter: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0:
            raise PlanError(f"gamma is {self.gamma}", hint="give a number above 0")

    def refuses(self, site: Site) -> str:
        if 2 * self.rank > most(site.signature):
            return f"twice the rank {self.rank} is above {most(site.signature)}"
        return super().refuses(site)

    def structure(self, site: Site) -> Structure:
        return with_start(site.signature, self.rank)

    def start(self, at: Start) -> Parts:
        gradient = at.matrices(at.given("gradient"))
        left, _, right = leading(gradient, 2 * self.rank, self.niter, at.generator)
        ours, theirs = self._halves(at)
        size = self._size(at)
        b, a = left[..., ours] * size, right[..., theirs, :] * size
        return Parts(at.shaped(B=b, A=a, B0=-b, A0=a))

    def _halves(self, at: Start) -> tuple[Tensor, Tensor]:
        """Return the places of the singular vectors that B and A begin with."""
        first, both = torch.arange(self.rank), torch.arange(2 * self.rank)
        if self.direction == "random":
            both = torch.randperm(2 * self.rank, generator=at.generator)
        if self.direction == "ArBr":
            return both[::2], both[1::2]
        if self.direction == "A2rBr":
            return first, both[self.rank :]
        return both[self.rank :], both[: self.rank]

    def _size(self, at: Start) -> Tensor | float:
        """Return what both factors are multiplied by: a number, of experts one each (e, 1, 1)."""
        factor, matrix = self.factor(at.site), at.matrices(at.weight)
        if self.scale == "stable":
            return float(matrix.shape[-2] ** 0.25 / self.gamma**0.5)
        if self.scale == "gd":
            return 1 / factor
        if self.scale == "weight":
            _, values, _ = leading(matrix, self.rank, self.niter, at.generator)
            return (values.mean(-1) / factor).sqrt()[..., None, None]
        return 1.0
