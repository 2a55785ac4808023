"""Starts one layer after another: each is computed on what the deltas before it leave to its layer.

For a layer with weight W' and bias b', that was W and b in the original, the map D that is added is
regressed on the layer's inputs of now, x', while x are the original's on the same data:
`D = argmin E |W x + b - b' - (W' + D) x'|^2 + ridge |D|^2`, the ridge as so few rows ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.calibration import averaged
from tnc.adapters.place import Place
from tnc.capture import capture
from tnc.capture.undisturbed import evaluating
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.planner.preparing import example_of
from tnc.rewrite.drift import Moments, moments_at, stages
from tnc.rewrite.fitting import shrinkage
from tnc.rewrite.reading import Originals


@dataclass(frozen=True, eq=False)
class Wish:
    """What a layer is to compute instead of its weight, and the moment of its inputs, float64.

    `target` is a map (o, i..), `moment` is (i, i) over all inputs.
    """

    target: Tensor
    moment: Tensor


def wishes(
    model: nn.Module,
    original: nn.Module,
    places: Sequence[Place],
    batches: Sequence[Any],
    room: int,
) -> Iterator[tuple[Place, Wish]]:
    """Yield the wish of every place in the order of execution.

    `model` is read as it is when the next is asked for, so the caller may attach deltas between.
    At most `room` bytes of the original's activations are kept, others are computed again. Raises
    PlanError where the original has no such layer.
    """
    known = {site.name: site for site in _sites(original, batches)}
    held = {place.site.name: place for place in places}
    wanted = [_same(known, place) for place in places]
    with evaluating(original):
        found = stages(original, wanted, batches[0])
        seen = {site.name for stage in found for site in stage}
        for name in held.keys() - seen:
            raise PlanError(
                f"the original does not call {name} as one plain layer",
                where=name,
                hint="leave it out by a rule, or start it toward=weight",
            )
        inputs = Originals(original, [stage[0].path for stage in found], batches, room)
        for stage in found:
            path = held[stage[0].name].owners[0].path
            shared = _shared(moments_at(inputs, model, stage[0], batches, path)[0])
            for site in stage:
                place = held[site.name]
                yield place, _wish(model, original, place, site, shared)


def _shared(moments: Moments) -> Moments:
    """Return the moments of all members of the process group, where there is one."""
    return Moments(
        averaged(moments.was),
        averaged(moments.cross),
        averaged(moments.now),
        averaged(moments.mean_was),
        averaged(moments.mean_now),
        moments.rows,
    )


def _sites(original: nn.Module, batches: Sequence[Any]) -> tuple[Site, ...]:
    return capture(original, *example_of(None, tuple(batches)), graph=False).sites


def _same(known: Mapping[str, Site], place: Place) -> Site:
    """Return the original's site of a place."""
    found = known.get(place.site.name)
    if found is None:
        raise PlanError(
            f"the original has no weight {place.site.name}",
            where=place.site.name,
            hint="give the model that was compressed, with its own modules and names",
        )
    if found.signature != place.site.signature:
        raise PlanError(
            f"{place.site.name} is {place.site.signature}, in the original {found.signature}",
            where=place.site.name,
            hint="give the model that was compressed, with its own modules and names",
        )
    return found


def _wish(
    model: nn.Module, original: nn.Module, place: Place, site: Site, moments: Moments
) -> Wish:
    now = place.mapped(model)
    layer = original.get_submodule(site.path)
    was = layer.get_parameter("weight").detach().permute(site.order).to(now.device)
    shift = _bias(layer, moments) - _bias(model.get_submodule(place.owners[0].path), moments)
    outputs = len(now)
    w, changed = (t.reshape(outputs, -1).to(moments.now) for t in (was, now))
    lost = (
        w @ moments.cross
        - changed @ moments.now
        + torch.outer(shift.expand(outputs), moments.mean_now)
    )
    level = (1e-8 + shrinkage(len(moments.now), moments.rows)) * moments.now.diagonal().mean()
    inputs = moments.now + level * torch.eye(len(moments.now)).to(moments.now)
    change = torch.linalg.solve(inputs, lost.mT).mT
    return Wish((changed + change).reshape(now.shape), inputs)


def _bias(layer: nn.Module, moments: Moments) -> Tensor:
    found = getattr(layer, "bias", None)
    return found.detach().to(moments.now) if found is not None else moments.now.new_zeros(1)
