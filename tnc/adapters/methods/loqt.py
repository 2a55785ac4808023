"""LoQT: low-rank steps that are merged into a quantised weight again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.adapters.equations import chain, most
from tnc.adapters.exchanging import exchange_
from tnc.adapters.factors import flat, pair
from tnc.adapters.method import Method, methods
from tnc.adapters.quantised import quantised, restored
from tnc.adapters.start import Parts, Start, wide
from tnc.adapters.training_step import TrainingStep
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure


@methods.register("loqt")
@dataclass(frozen=True)
class LoQT(Method):
    """`Q + alpha B P` with Q the weight in four bits (NF4 blocks), P frozen, B trained.

    P (r, i) are the leading singular vectors of the gradient on its inputs where these are no more
    than outputs; else the frozen factor is (o, r) and the other is trained. B starts as the fit of
    what quantising lost: `iterations` times `Q = quant(W - alpha B P)`, `B = (W - Q) P^T / alpha`,
    the best is kept (0: B is zero). At steps `t_(k+1) = t_k + gap + floor(growth^k)` from `t_0 = 0`
    (growth 0: every `gap` steps) the delta is merged, P taken anew from the gradient of the whole
    weight in that step, the sum quantised and B fitted again. First moments of B move by
    `m P P'^T`, second ones by its squares, which loses what the new subspace does not see;
    `moments="dropped"` starts the optimizer anew. For that step a gradient of o x i numbers is
    held. Trains r max(o, i) parameters; the quantised weight takes half a byte an entry and a
    number a block. The model's own weight is left as it was, and in memory.
    (Loeschcke et al., LoQT, NeurIPS 2024, algorithms 1 and 2; P is not quantised.)
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    offset: ClassVar[str] = "its base is quantised"
    compressed: ClassVar[str] = "a base of cores has no entries that could be quantised in blocks"

    rank: int = 8
    alpha: float = 1.0
    block: int = 64
    gap: int = 100
    growth: float = 0.0
    iterations: int = 5
    moments: Literal["moved", "dropped"] = "moved"

    def __post_init__(self) -> None:
        low = min(self.rank, self.block, self.gap)
        if low < 1 or min(self.growth, self.iterations) < 0 or self.alpha <= 0:
            raise PlanError(
                f"rank {self.rank}, block {self.block}, gap {self.gap}, alpha {self.alpha}, growth "
                f"{self.growth}, {self.iterations} iterations",
                hint="the first three are from 1, alpha is above 0, the others are from 0",
            )

    def refuses(self, site: Site) -> str:
        top = most(site.signature)
        return f"rank {self.rank} is above {top}" if self.rank > top else ""

    def structure(self, site: Site) -> Structure:
        b, a = ("B", "A!") if on_inputs(site) else ("B!", "A")
        return chain(site.signature, (b, "o r"), (a, "r i"), r=self.rank)

    def factor(self, site: Site) -> float:
        return self.alpha

    def start(self, at: Start) -> Parts:
        signature, shapes = at.site.signature, at.structure.shapes
        frozen = self._subspace(at.site, flat(signature, at.given("gradient")))
        codes, scales, trained = self._compensated(at.site, flat(signature, at.weight), frozen)
        b, a = (trained, frozen) if on_inputs(at.site) else (frozen, trained)
        return Parts(
            {"B": b.reshape(shapes["B"]), "A": a.reshape(shapes["A"])},
            constants={"codes": codes, "scales": scales},
        )

    def base(self, delta: Delta, weight: Tensor) -> Tensor:
        return self._restored(delta).permute(delta.site.unordered).to(weight.dtype)

    def divided(self) -> str:
        return "it quantises whole weights anew at every merge"

    def event_(self, delta: Delta, at: TrainingStep) -> str:
        told = ""
        if delta.probe is not None:
            gradient = delta.watched_()
            if gradient is None or not bool(gradient.isfinite().all()):
                delta.watch_()
                return "merging put off: no finite gradient of the weight"
            told = self._merge_(delta, at, gradient)
        if self.due(at.number + 1):
            delta.watch_()
        return told

    def due(self, step: int) -> bool:
        """Whether the delta is merged after so many steps."""
        place, count = 0, 0
        while place < step:
            place += self.gap + (int(self.growth**count) if self.growth else 0)
            count += 1
        return place == step

    def _merge_(self, delta: Delta, at: TrainingStep, gradient: Tensor) -> str:
        site = delta.site
        b, a = (wide(factor) for factor in pair(delta))
        whole = wide(flat(site.signature, self._restored(delta))) + self.alpha * b @ a
        frozen = self._subspace(site, flat(site.signature, wide(gradient)))
        codes, scales, trained = self._compensated(site, whole, frozen)
        delta.constant("codes").copy_(codes)
        delta.constant("scales").copy_(scales)
        right = on_inputs(site)
        turn = frozen @ a.mT if right else frozen.mT @ b
        values = {"B": trained, "A": frozen} if right else {"B": frozen, "A": trained}
        values = {name: v.reshape(delta.cores[name].shape) for name, v in values.items()}
        maps = {"B": {1: turn}} if right else {"A": {0: turn}}
        moved = self.moments == "moved" and turn.dim() == 2
        dropped = exchange_(at, delta, values, maps if moved else {})
        b, a = pair(delta)
        now = flat(site.signature, self._restored(delta)) + self.alpha * b @ a
        lost = float((now - whole).norm() / whole.norm().clamp_min(1e-30))
        kept = f"moments keep {float(turn.square().sum() / turn.shape[-1]):.0%} of the subspace"
        return f"merged, requantised with relative error {lost:.3g}; {dropped or kept}"

    def _subspace(self, site: Site, gradient: Tensor) -> Tensor:
        """Return leading singular vectors of a gradient, `[r i]` or `[o r]`."""
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        found: Tensor = right[..., : self.rank, :] if on_inputs(site) else left[..., : self.rank]
        return found

    def _compensated(
        self, site: Site, whole: Tensor, frozen: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes, block maxima and the trained factor, of the least error that was met."""
        right, scale, best = on_inputs(site), self.alpha, None
        delta = torch.zeros_like(whole)
        for _ in range(max(1, self.iterations)):
            codes, scales = quantised(whole - delta, self.block)
            rest = whole - restored(codes, scales, tuple(whole.shape), self.block)
            trained = (rest @ frozen.mT if right else frozen.mT @ rest) / scale
            if not self.iterations:
                return codes, scales, torch.zeros_like(trained)
            delta = scale * (trained @ frozen if right else frozen @ trained)
            error = float((rest - delta).norm())
            if best is None or error < best[0]:
                best = (error, codes, scales, trained)
        assert best is not None
        return best[1:]

    def _restored(self, delta: Delta) -> Tensor:
        codes, scales = delta.constant("codes"), delta.constant("scales")
        return restored(codes, scales, delta.site.signature.shape, self.block)


def on_inputs(site: Site) -> bool:
    """Whether the frozen factor is that of the inputs: they are no more than the outputs."""
    outputs = site.signature.outputs[-1]
    return site.signature.parameters // torch.Size(site.signature.outputs).numel() <= outputs
