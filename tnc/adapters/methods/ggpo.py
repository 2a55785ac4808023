"""LoRA-GGPO: training with weights that are perturbed by the gradient's size (experimental)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.adapters.factors import bytes_of, pair, pair_gradients
from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.start import Parts, Start
from tnc.adapters.training_step import TrainingStep
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.optim.seeds import mixed


@methods.register("ggpo")
@dataclass(frozen=True)
class GGPO(LoRA):
    """LoRA that computes with `W + s B A + E` in training, E random and without gradient.

    Row k of E is `z (sigma sqrt(w^2 + |s B A|_k^2) + beta |G|_k^2) / sqrt(o)` with z ~ N(0, 1), w
    the mean norm of the rows of W, and `G = s (B dA + dB A)` of the step before, from the gradients
    of the factors; with `average` |G|_k^2 is a running mean with that decay (momentum-guided).
    Evaluation and merging know nothing of E. E follows from seed and step: passes of one step, of
    all processes and of gradient checkpointing see the same. It costs one sample of o x i numbers a
    pass; w and |G|^2 are o + 1 numbers. Trains r (o + i) parameters.
    (After a third party's implementation of Chang et al., LoRA-GGPO, 2025, renamed LoRA-MGPO: the
    paper's own equations were not compared. Unlike there the factor s is applied to B A.)
    """

    sigma: float = 0.03
    beta: float = 0.01
    average: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.sigma, self.beta) < 0 or not 0 <= self.average < 1:
            raise PlanError(
                f"sigma {self.sigma}, beta {self.beta}, average {self.average}",
                hint="sigma and beta are from 0, average is from 0 to below 1",
            )

    def start(self, at: Start) -> Parts:
        parts = super().start(at)
        rows = at.weight.flatten(len(at.site.signature.outputs)).norm(dim=-1)
        return Parts(parts.cores, constants={"rows": rows.mean()})

    def divided(self) -> str:
        return "its perturbation is drawn for whole weights"

    def memory_bytes(self, site: Site) -> int:
        whole = site.signature.outputs
        return bytes_of(site.dtype) * torch.Size(whole).numel() if self.beta else 0

    def gradients_(self, delta: Delta, at: TrainingStep) -> None:
        found = pair_gradients(delta)
        if found is None or not self.beta:
            return
        (b, a), (g_b, g_a) = pair(delta), found
        left, right = torch.cat([b, g_b], -1), torch.cat([g_a, a], -2)
        squares = delta.factor**2 * row_squares(left, right)
        before = delta.memory.get("rows", torch.zeros_like(squares))
        delta.memory["rows"] = before.lerp(squares, 1 - self.average)

    def perturbation(self, delta: Delta) -> Tensor | None:
        if not self.sigma and not self.beta:
            return None
        found: Tensor = drawn(delta, self.size(delta))
        return found

    @torch.no_grad()
    def size(self, delta: Delta) -> Tensor:
        """Return the standard deviation of every row of E, `(outputs..,)`."""
        b, a = pair(delta)
        squares = delta.factor**2 * row_squares(b, a)
        size = self.sigma * (delta.constant("rows") ** 2 + squares).sqrt()
        if "rows" in delta.memory:
            size = size + self.beta * delta.memory["rows"]
        found: Tensor = size * delta.site.signature.outputs[-1] ** -0.5
        return found


def drawn(delta: Delta, size: Tensor) -> Tensor:
    """Draw E of a delta for its present step; no gradient passes through it."""
    size = size.detach()
    seed = mixed(delta.seed, delta.steps)
    generator = torch.Generator(device=size.device).manual_seed(seed)
    shape = delta.site.signature.shape
    noise = torch.randn(shape, generator=generator, device=size.device, dtype=size.dtype)
    return noise * size.reshape(*size.shape, *[1] * (len(shape) - size.dim()))


def row_squares(left: Tensor, right: Tensor) -> Tensor:
    """Return the squared norms of the rows of a product, without the product."""
    return ((left @ (right @ right.mT)) * left).sum(-1).clamp_min(0)
