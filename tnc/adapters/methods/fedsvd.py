"""FedSVD: one factor is trained, and both are made orthogonal again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.adapters.equations import chain
from tnc.adapters.exchanging import exchange_
from tnc.adapters.factors import flat, pair
from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.start import Parts, Start
from tnc.adapters.training_step import TrainingStep
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure


@methods.register("fedsvd")
@dataclass(frozen=True)
class FedSVD(LoRA):
    """`W + s B A`, A frozen with orthonormal rows, B trained from zero.

    Every `every` steps (a round: after clients were averaged) `B A = U S V^T` and `A <- V^T`,
    `B <- U S`: the product stays as it is. As `V^T = Q A` with Q from the small decomposition
    `B = U S Q`, no m x n matrix is decomposed, and lost ranks of B lose nothing of A. The gradient
    of the new B is that of the old one times `A A'^T = Q^T`, exactly, and so moves a first moment;
    a second moment moves by the squares of Q, which is exact for uncorrelated gradients alone. With
    `moments="dropped"` the optimizer starts anew instead, as it does for stacks of experts. Trains
    r o parameters. (Lee et al., FedSVD, NeurIPS 2025, section 3.)
    """

    every: int = 100
    moments: Literal["moved", "dropped"] = "moved"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise PlanError(f"every is {self.every}", hint="give a number of steps from 1")

    def structure(self, site: Site) -> Structure:
        return chain(site.signature, ("B", "o r"), ("A!", "r i"), r=self.rank)

    def start(self, at: Start) -> Parts:
        drawn = at.normal("A").double()
        basis, _ = torch.linalg.qr(flat(at.site.signature, drawn).mT)
        return Parts({"B": at.zeros("B"), "A": basis.mT.reshape(drawn.shape)})

    def event_(self, delta: Delta, at: TrainingStep) -> str:
        if at.number % self.every:
            return ""
        b, a = pair(delta)
        new_b, new_a, turn = refactored(b, a)
        moved = self.moments == "moved" and turn.dim() == 2
        cores = delta.cores
        values = {"B": new_b.reshape(cores["B"].shape), "A": new_a.reshape(cores["A"].shape)}
        dropped = exchange_(at, delta, values, {"B": {1: turn}} if moved else {})
        return "refactored" + (f"; {dropped}" if dropped else "")


def refactored(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `B' = U S`, `A' = Q A` and Q of `B = U S Q`; rows of A are orthonormal."""
    left, values, turn = torch.linalg.svd(b.double(), full_matrices=False)
    return (left * values.unsqueeze(-2)).to(b), (turn @ a.double()).to(a), turn.to(b)
