"""LoRA-Pro: gradients of the factors whose step is nearest to that of the full weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.adapters.factors import bytes_of, cutoff, inverse, pair, pair_gradients
from tnc.adapters.method import methods
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.training_step import TrainingStep
from tnc.decide.site import Site
from tnc.errors import PlanError


@methods.register("lora-pro")
@dataclass(frozen=True)
class LoRAPro(LoRA):
    """LoRA whose gradients are adjusted before every step; saved it is a LoRA.

    With `g_A = s B^T G`, `g_B = s G A^T` and pseudo-inverses, so that B = 0 and lost ranks are
    safe: `g_A' = (B^T B)^+ g_A / s^2 + X A`, `g_B' = (I - P_B) g_B (A A^T)^+ / s^2 - B X`. To first
    order W then moves by `s B g_A' + s g_B' A = G - (I - P_B) G (I - P_A)`, the nearest to G that
    the factors can, for every X; X solves `B^T B X + X A A^T = -(B^T B)^+ g_A A^T / s^2`, by which
    the adjusted gradients are nearest to the plain ones. Trains r (o + i) parameters.

    With `adam` the moments are kept of that equivalent gradient, normalised, projected to the
    factors and adjusted again; the optimizer is plain SGD then. They couple B and A and belong to
    no single parameter, so they are the delta's memory: 2 o i numbers, saved with the optimizer.
    (Wang et al., LoRA-Pro, ICLR 2025, theorems 2.1 to 2.3 and algorithms 1 and 2. Bias correction
    counts from the first step, which the release does not.)
    """

    adam: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise PlanError(f"betas are {self.betas}", hint="give decays from 0 to below 1")

    def unfit(self, optimizer: torch.optim.Optimizer) -> str:
        if self.adam and type(optimizer) is not torch.optim.SGD:
            name = type(optimizer).__name__
            return f"lora-pro with adam normalises gradients itself, {name} would do it again"
        return ""

    def divided(self) -> str:
        return "its moments are of the whole weight" if self.adam else ""

    def memory_bytes(self, site: Site) -> int:
        return 2 * bytes_of(site.dtype) * site.signature.parameters if self.adam else 0

    def gradients_(self, delta: Delta, at: TrainingStep) -> None:
        found = pair_gradients(delta)
        if found is None:
            return
        (b, a), (g_b, g_a), s = pair(delta), found, delta.factor
        if self.adam:
            full = self._normalised(equivalent(b, a, g_b, g_a, s), delta, at.number)
            g_b, g_a = s * full @ a.mT, s * b.mT @ full
        for name, gradient in zip(("B", "A"), adjusted(b, a, g_b, g_a, s)):
            own = delta.cores[name].grad
            assert own is not None
            own.copy_(gradient.reshape(own.shape))

    def _normalised(self, gradient: Tensor, delta: Delta, number: int) -> Tensor:
        memory, (first, second) = delta.memory, self.betas
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in memory:
                memory[name] = torch.zeros_like(gradient)
        memory["exp_avg"].lerp_(gradient, 1 - first)
        memory["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (memory["exp_avg_sq"] / (1 - second**number)).sqrt_().add_(self.eps)
        return (memory["exp_avg"] / root).mul_(1 / (1 - first**number))


def adjusted(
    b: Tensor, a: Tensor, g_b: Tensor, g_a: Tensor, s: float, x: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the adjusted gradients of B and A, in float64; `x` is solved for where not given."""
    into_b, into_a = (inverse(gram(f), cutoff(f)) / s**2 for f in (b.mT, a))
    b, a, g_b, g_a = b.double(), a.double(), g_b.double(), g_a.double()
    new_a = into_b @ g_a
    if x is None:
        x = sylvester(b, a, -(new_a @ a.mT))
    outside = g_b - s**2 * b @ (into_b @ (b.mT @ g_b))
    return outside @ into_a - b @ x, new_a + x @ a


def sylvester(b: Tensor, a: Tensor, right: Tensor) -> Tensor:
    """Solve `B^T B X + X A A^T = right` by two symmetric eigendecompositions.

    Where both eigenvalues vanish the solution is open, and taken as zero.
    """
    ours, us = torch.linalg.eigh(gram(b.mT))
    theirs, vs = torch.linalg.eigh(gram(a))
    sums = (ours.unsqueeze(-1) + theirs.unsqueeze(-2)).clamp_min(0)
    usable = sums > cutoff(a) * sums.amax((-2, -1), keepdim=True)
    solved = (us.mT @ right @ vs) / torch.where(usable, sums, 1.0)
    found: Tensor = us @ torch.where(usable, solved, 0.0) @ vs.mT
    return found


def equivalent(b: Tensor, a: Tensor, g_b: Tensor, g_a: Tensor, s: float) -> Tensor:
    """Return `G - (I - P_B) G (I - P_A)` from the gradients of the factors alone."""
    zero = torch.zeros(*b.shape[:-2], b.shape[-1], b.shape[-1], dtype=torch.float64)
    new_b, new_a = adjusted(b, a, g_b, g_a, s, zero.to(b.device))
    return (s * (b.double() @ new_a + new_b @ a.double())).to(g_b.dtype)


def gram(factor: Tensor) -> Tensor:
    """Return `F F^T` in float64."""
    wide = factor.double()
    return wide @ wide.mT
