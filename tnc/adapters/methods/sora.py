"""SoRA: a gate on every rank, which a proximal step closes; closed ranks are pruned."""

from __future__ import annotations

from dataclasses import dataclass
from math import e, log, prod
from typing import Literal

import torch
from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.adapters.equations import chain
from tnc.adapters.exchanging import exchange_
from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.start import Parts, Start
from tnc.adapters.training_step import TrainingStep
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure


@methods.register("sora")
@dataclass(frozen=True)
class SoRA(LoRA):
    """`W + s B diag(g) A` with B zero, A as LoRA's and gates `g ~ N(0, 1)`.

    After every step `g <- sign(g) max(|g| - threshold, 0)`, with `by_rate` the threshold times the
    learning rate of g. With `final` the threshold goes there within `over` steps: `linear`, `exp`
    (by a constant factor) or `log` (fast first). `penalty_weight` times the mean of |g|, over all
    gates that the model had at the start, is added to the loss. Every `prune_every` steps (0:
    never) ranks whose gate is zero are cut out, of the optimizer's state too; outputs do not
    change, and one rank always stays. Trains r (o + i + 1) parameters, by the end k (o + i + 1) for
    k open gates.
    (Ding et al., Sparse Low-rank Adaptation, EMNLP 2023, equations 6 to 9. The proximal step is the
    true one: that of the release also closes gates between one and two thresholds.)
    """

    threshold: float = 1e-3
    final: float | None = None
    over: int = 1000
    schedule: Literal["linear", "log", "exp"] = "linear"
    by_rate: bool = False
    penalty_weight: float = 0.0
    prune_every: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        low = min(self.threshold, self.final or 0.0, self.penalty_weight, self.prune_every)
        if low < 0 or self.over < 1:
            raise PlanError(
                f"SoRA with a threshold, weight or number of {low}, over {self.over} steps",
                hint="thresholds and weights are from 0, `over` from 1",
            )
        if self.schedule == "exp" and self.final is not None and not self.threshold * self.final:
            raise PlanError(
                "an exponential schedule from or to a threshold of 0",
                hint="give thresholds above 0, or schedule=linear",
            )

    def structure(self, site: Site) -> Structure:
        return self.of_rank(site, self.rank)

    def of_rank(self, site: Site, rank: int) -> Structure:
        """Return the delta with so many ranks."""
        return chain(site.signature, ("B", "o r"), ("g", "r"), ("A", "r i"), r=rank)

    def start(self, at: Start) -> Parts:
        return Parts({"B": at.zeros("B"), "g": at.normal("g"), "A": at.kaiming("A")})

    def penalty(self, delta: Delta, at: TrainingStep) -> Tensor | None:
        if not self.penalty_weight:
            return None
        shapes = [each.method.structure(each.site).shapes["g"] for each in at.alike(delta)]
        gates = sum(prod(shape) for shape in shapes)
        return delta.cores["g"].abs().sum() * (self.penalty_weight / gates)

    def proximal_(self, delta: Delta, at: TrainingStep) -> None:
        gate = delta.cores["g"]
        by = self.threshold_at(at.number) * (at.rate(gate) if self.by_rate else 1.0)
        gate.copy_(gate.sign() * (gate.abs() - by).clamp_min(0))

    def threshold_at(self, number: int) -> float:
        """Return the threshold of a step, counted from 1."""
        if self.final is None:
            return self.threshold
        share = min(1.0, (number - 1) / self.over)
        if self.schedule == "exp":
            return float(self.threshold * (self.final / self.threshold) ** share)
        if self.schedule == "log":
            share = log(1 + share * (e - 1))
        return self.threshold + (self.final - self.threshold) * share

    def event_(self, delta: Delta, at: TrainingStep) -> str:
        if not self.prune_every or at.number % self.prune_every:
            return ""
        return prune_(delta, at)


def prune_(delta: Delta, at: TrainingStep) -> str:
    """Cut out the ranks whose gates are zero; say how many are left, or ''."""
    method, gate = delta.method, delta.cores["g"]
    assert isinstance(method, SoRA)
    kept = (gate.reshape(-1, gate.shape[-1]) != 0).any(0).nonzero().flatten()
    if not len(kept):
        kept = torch.zeros(1, dtype=torch.long, device=gate.device)
    if len(kept) == gate.shape[-1]:
        return ""
    axes = {"B": gate.dim(), "g": gate.dim() - 1, "A": gate.dim() - 1}
    values = {name: delta.cores[name].index_select(axis, kept) for name, axis in axes.items()}
    maps = {name: {axis: kept} for name, axis in axes.items()}
    structure = method.of_rank(delta.site, len(kept))
    before = gate.shape[-1]
    dropped = exchange_(at, delta, values, maps, structure)
    return f"{before} ranks pruned to {len(kept)}" + (f"; {dropped}" if dropped else "")
