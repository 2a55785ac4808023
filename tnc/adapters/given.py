"""What starts and budgets are computed from: collected for the weights that need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from tnc.adapters.calibration import LIMIT, Loss, gradients, output_loss
from tnc.adapters.choosing import Chosen
from tnc.capture import measure
from tnc.decide.site import Site
from tnc.errors import PlanError

WANTS = {
    "gradient": ("from gradients", "give calibration batches, and a loss that reaches the weights"),
    "moment": ("from the inputs of layers", "give calibration batches"),
    "original": ("from what a compressed weight lost", "give the model that it was made of"),
}
"""For each need of a method: what it starts from, and what to do where that is not given."""


@dataclass(frozen=True, eq=False)
class Given:
    """What the caller gave: batches with a loss, the original of a compressed model.

    At most `limit` bytes of gradients are held at once.
    """

    batches: Sequence[object] = ()
    loss: Loss = output_loss
    original: nn.Module | None = None
    limit: int = LIMIT
    _moments: dict[str, Tensor] = field(default_factory=dict)

    def check(self, needs: str, who: str, where: str) -> None:
        """Raise PlanError where a need of a method, or of a budget, cannot be met."""
        there = self.original is not None if needs == "original" else bool(self.batches)
        if not there:
            starts, hint = WANTS[needs]
            what = "original model" if needs == "original" else "calibration data"
            raise PlanError(f"{who} {starts}, and there is no {what}", where=where, hint=hint)

    def gradients(
        self, model: nn.Module, chosen: Sequence[Chosen]
    ) -> Iterator[tuple[Chosen, Tensor]]:
        """Yield the mean gradient of each weight; see `tnc.adapters.calibration.gradients`."""
        held = {each.name: each for each in chosen}
        places = [each.place for each in chosen]
        if places:
            found = gradients(model, places, self.batches, self.loss, self.limit)
            for place, gradient in found:
                yield held[place.site.name], gradient

    def measure_(self, model: nn.Module, sites: Sequence[Site]) -> None:
        """Measure the second moments of the inputs of weights, those that are not yet."""
        new = [site for site in sites if site.name not in self._moments]
        if not new:
            return
        measured = measure(model, new, self.batches)
        for site in new:
            moment = measured.of(site.name).moment
            if moment is not None:
                self._moments[site.name] = moment

    def moment(self, site: Site) -> Tensor | None:
        """Return the second moment of a weight's inputs, where it was measured."""
        return self._moments.get(site.name)

    def was(self, site: Site) -> Tensor | None:
        """Return the original of a compressed weight as a map."""
        own = dict(self.original.named_parameters()) if self.original is not None else {}
        held = next((own[name] for name in site.aliases if name in own), None)
        return None if held is None else held.detach().permute(site.order)
