"""SaRA: the smallest entries of a weight are trained, the others stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.adapters.equations import chain, network
from tnc.adapters.exchanging import exchange_
from tnc.adapters.factors import flat
from tnc.adapters.method import Method, methods
from tnc.adapters.start import Parts, Start
from tnc.adapters.training_step import TrainingStep
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure, parse_network

LARGEST = 2**31 - 1


@methods.register("sara")
@dataclass(frozen=True)
class SaRA(Method):
    """`W + S`, S sparse and zero at first, stored where `|W| < threshold`.

    Without a threshold the `share` of smallest entries is stored, so that their number is known
    before the weight is. In each step one weight is drawn, and `nuclear` times the nuclear norm of
    its entries `(W + S) M` within the mask M is added to the loss: a decomposition of one matrix
    (0: none). Every `reselect_every` steps (0: never) entries that have grown to the threshold or
    above leave the mask: their values stay, in a frozen core, and the others keep the optimizer's
    state. The mask is stored, never computed from trained weights. Entries outside it keep every
    bit. Trains as many parameters as the mask has entries. Decoupled weight decay draws S, not
    W + S, to zero.
    (Hu et al., SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank
    Adaptation, ICLR 2025, sections 3.2 to 3.4.)
    """

    sized_by: ClassVar[str] = ""

    share: float = 0.05
    threshold: float | None = None
    nuclear: float = 5e-4
    reselect_every: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise PlanError(f"share is {self.share}", hint="give a share above 0, up to 1")
        if min(self.nuclear, self.reselect_every) < 0 or (self.threshold or 1) <= 0:
            raise PlanError(
                f"threshold {self.threshold}, nuclear {self.nuclear}, every {self.reselect_every}",
                hint="the threshold is above 0, the others are from 0",
            )

    def refuses(self, site: Site) -> str:
        if site.signature.parameters > LARGEST:
            return f"{site.signature} has more entries than 32-bit positions reach"
        return ""

    def structure(self, site: Site) -> Structure:
        """Return the delta; with a threshold its number of entries is known to the start alone."""
        share = 1.0 if self.threshold is not None else self.share
        return self.of_count(site, max(1, round(share * site.signature.parameters)))

    def of_count(self, site: Site, count: int) -> Structure:
        """Return the delta with so many entries."""
        return chain(site.signature, ("S#k", "o i"), k=count)

    def trained(self, site: Site, weight: Callable[[], Tensor]) -> int:
        if self.threshold is None:
            return super().trained(site, weight)
        return int((weight().abs() < self.threshold).sum())

    def start(self, at: Start) -> Parts:
        sizes = at.weight.abs().flatten()
        if self.threshold is None:
            count = at.structure.stored["S"]
            places = sizes.topk(count, largest=False).indices
            bound = torch.nextafter(sizes[places].max(), sizes.new_tensor(torch.inf))
        else:
            bound = sizes.new_tensor(self.threshold)
            places = (sizes < bound).nonzero().flatten()
            if not len(places):
                raise PlanError(
                    f"no entry of {at.site.name} is below {self.threshold}",
                    where=at.site.name,
                    hint=f"the smallest is {float(sizes.min()):.3g}; give a share instead",
                )
        places = places.sort().values
        small = at.weight.flatten()[places]
        return Parts(
            {"S": torch.zeros_like(small)},
            constants={"small": small, "bound": bound},
            positions={"S": places.to(torch.int32)},
            structure=self.of_count(at.site, len(places)),
        )

    def divided(self) -> str:
        return "its penalty and its selection look at all entries of a weight"

    def penalty(self, delta: Delta, at: TrainingStep) -> Tensor | None:
        if not self.nuclear or not at.drawn(delta):
            return None
        values = delta.constant("small") + delta.cores["S"]
        signature, places = delta.site.signature, delta.layer.positions["S"].long()
        masked = values.new_zeros(signature.parameters).scatter(0, places, values)
        matrix = flat(signature, masked.reshape(signature.shape))
        total: Tensor = torch.linalg.svdvals(matrix).sum()
        return total * self.nuclear

    def event_(self, delta: Delta, at: TrainingStep) -> str:
        if not self.reselect_every or at.number % self.reselect_every:
            return ""
        values, small = delta.cores["S"], delta.constant("small")
        inside = (small + values).abs() < delta.constant("bound")
        if not bool(inside.any()):
            inside[(small + values).abs().argmin()] = True
        if bool(inside.all()):
            return ""
        kept = inside.nonzero().flatten()
        dropped = self._exchange_(delta, at, kept, (~inside).nonzero().flatten())
        told = f"{len(kept)} of {len(inside)} entries are trained on"
        return told + (f"; {dropped}" if dropped else "")

    def _exchange_(self, delta: Delta, at: TrainingStep, kept: Tensor, left: Tensor) -> str:
        """Leave the kept entries in S and put the others into the frozen core F."""
        places, values = delta.layer.positions, delta.cores["S"].detach()
        frozen, frozen_places = values[left], places["S"][left]
        if "F" in places:
            frozen = torch.cat([delta.cores["F"].detach(), frozen])
            frozen_places = torch.cat([places["F"], frozen_places])
        order = frozen_places.argsort()
        small: Any = delta.constant("small")  # in place: tied deltas share it
        small.set_(small[kept])
        signature = delta.site.signature
        trained = network(signature, ("S#k", "o i"), k=len(kept))
        stays = network(signature, ("F!#f", "o i"), f=len(order))
        return exchange_(
            at,
            delta,
            {"S": values[kept], "F": frozen[order]},
            {"S": {0: kept}},
            Structure.of(parse_network(trained), parse_network(stays), signature=signature),
            {"S": places["S"][kept], "F": frozen_places[order]},
        )
