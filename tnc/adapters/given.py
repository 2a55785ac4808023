"""What starts and budgets are computed from: collected for the weights that need it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tnc.adapters.calibration import (
    LIMIT,
    Loss,
    check_loss,
    gradients,
    moment_bytes,
    moments,
    output_loss,
    parted,
)
from tnc.adapters.choosing import Chosen
from tnc.adapters.place import Place
from tnc.adapters.sequential import wishes
from tnc.capture.batches import batches_of
from tnc.capture.model import Holder, model_of
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.nn import StructuredLayer
from tnc.nn.rebuilt import SUFFIX

WANTS = {
    "gradient": ("from gradients", "give calibration batches, and a loss that reaches the weights"),
    "moment": ("from the inputs of layers", "give calibration batches"),
    "original": ("from what a compressed weight lost", "give the model that it was made of"),
}
"""For each need of a method: what it starts from, and what to do where that is not given."""


@dataclass(frozen=True, eq=False)
class Figures:
    """What one start is computed from, as far as its method needs it; see `Start`."""

    gradient: Tensor | None = None
    moment: Tensor | None = None
    original: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Given:
    """What the caller gave: batches with a loss, the original of a compressed model.

    At most `limit` bytes of gradients, or of moments for starts, are held at once.
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
        if not places:
            return
        with closing(gradients(model, places, self.batches, self.loss, self.limit)) as found:
            for place, gradient in found:
                yield held[place.site.name], gradient
                del gradient  # the next part's must not find it alive

    def measure_(self, model: nn.Module, places: Sequence[Place]) -> None:
        """Measure the second moments of the inputs of weights, those that are not yet."""
        new = [place for place in places if place.site.name not in self._moments]
        if new:
            self._moments.update(moments(model, new, self.batches))

    def moments(self, model: nn.Module, chosen: Sequence[Chosen]) -> Iterator[Chosen]:
        """Yield each weight while the second moment of its inputs is at hand, a part at a time.

        What was measured before, for a budget, is kept.
        """
        held = {each.name: each for each in chosen}
        for part in parted([each.place for each in chosen], self.limit, moment_bytes):
            known = set(self._moments)
            self.measure_(model, part)
            yield from (held[place.site.name] for place in part)
            for name in set(self._moments) - known:
                del self._moments[name]

    def figures(self, each: Chosen, gradient: Tensor | None = None) -> Figures:
        """Return what is at hand for the start of one weight."""
        site, needs = each.place.site, each.method.needs
        return Figures(
            gradient,
            self.moment(site) if "moment" in needs else None,
            self.was(site) if "original" in needs else None,
        )

    def in_order(
        self, model: nn.Module, chosen: Sequence[Chosen]
    ) -> Iterator[tuple[Place, Figures]]:
        """Yield what sequential starts are computed from, in the order of execution.

        The caller attaches each start to the model before it asks for the next.
        """
        assert self.original is not None
        places = [each.place for each in chosen]
        for place, wish in wishes(model, self.original, places, self.batches, self.limit):
            yield place, Figures(None, wish.moment, wish.target)

    def moment(self, site: Site) -> Tensor | None:
        """Return the second moment of a weight's inputs, where it was measured."""
        return self._moments.get(site.name)

    def was(self, site: Site) -> Tensor | None:
        """Return the original of a compressed weight as a map, where the original has it.

        Raises PlanError where it is of another shape.
        """
        if self.original is None:
            return None
        own = dict(self.original.named_parameters(remove_duplicate=False))
        made = dict(self.original.named_modules(remove_duplicate=False))
        held: Tensor | None = None
        for alias in site.aliases:
            structured = made.get(alias if alias.endswith(SUFFIX) else alias.rpartition(".")[0])
            if isinstance(structured, StructuredLayer):
                held = structured.weight.detach()
            elif alias.removesuffix(SUFFIX) in own:
                held = own[alias.removesuffix(SUFFIX)].detach()
        if held is None:
            return None
        mapped = held.permute(site.order) if held.dim() == len(site.order) else held
        if tuple(mapped.shape) != site.signature.shape:
            raise PlanError(
                f"{site.name} is {site.signature}, in the original it is {tuple(held.shape)}",
                where=site.name,
                hint="give the model that was compressed, with its own modules and names",
            )
        return mapped


def collected(
    calibration: Iterable[Any] | None,
    loss: Loss,
    original: nn.Module | Holder | None,
    limit: int,
) -> Given:
    """Return what a caller gave. Raises CaptureError, PlanError for things of a wrong kind."""
    check_loss(loss)
    was = None if original is None else model_of(original, "original")
    return Given(batches_of(calibration), loss, was, limit)
