"""First values: of every chosen weight, each computed while what it needs is at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tnc.adapters.attach import attach_, generator_for, shared_copy
from tnc.adapters.choosing import Choice, Chosen
from tnc.adapters.given import Figures, Given
from tnc.adapters.method import Method
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.net import Structure

TRIED = "_tried"

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Started:
    """A chosen weight with its delta's structure and first values, not yet attached."""

    chosen: Chosen
    structure: Structure
    parts: Parts


def started(
    model: nn.Module, choice: Choice, given: Given, seed: int, report: Report | None = None
) -> tuple[Started, ...]:
    """Return the first values of an adapter's deltas, in the order of the weights.

    Gradients and moments are used as they come, those of one part of the weights at a time. Methods
    that are sequential come last, and in the order of execution.
    Raises PlanError where what a method needs is not given.
    """
    for each in choice.chosen:
        for need in each.method.needs:
            where = each.rule.where or choice.wanted.where
            given.check(need, f"{type(each.method).__name__} starts", where)
    later = [each for each in choice.chosen if each.method.sequential]
    first = [each for each in choice.chosen if not each.method.sequential]
    moved = [each for each in first if "moment" in each.method.needs]
    graded = [each for each in first if "gradient" in each.method.needs]
    given.measure_(model, [each.place for each in moved if each in graded])
    made: dict[str, Started] = {}
    shared = _shared(choice, seed)

    def begin(each: Chosen, figures: Figures) -> None:
        with torch.no_grad():
            made[each.name] = _begun(
                model, each, choice.wanted.name, seed, figures, shared[each.method]
            )
        if report is not None:
            report("start", len(made), len(choice.chosen))

    for each, gradient in given.gradients(model, graded):
        begin(each, given.figures(each, gradient))
        del gradient  # the next part's must not find it alive
    for each in given.moments(model, [each for each in moved if each not in graded]):
        begin(each, given.figures(each))
    for each in first:
        if each.name not in made:
            begin(each, given.figures(each))
    if later:
        changing, held = shared_copy(model), {each.name: each for each in later}
        for place, figures in given.in_order(changing, later):
            begin(held[place.site.name], figures)
            _try_(changing, made[place.site.name])
    return tuple(made[each.name] for each in choice.chosen)


def _begun(
    model: nn.Module,
    each: Chosen,
    name: str,
    seed: int,
    figures: Figures,
    shared: Mapping[str, Tensor],
) -> Started:
    site = each.place.site
    structure = each.method.structure(site)
    start = Start(
        site,
        structure,
        generator_for(seed, name, site.name),
        partial(each.place.mapped, model),
        figures.gradient,
        figures.moment,
        figures.original,
        shared,
    )
    parts = each.method.start(start)
    return Started(each, parts.structure or structure, parts)


def _try_(model: nn.Module, made: Started) -> None:
    """Attach first values to a model that only those after it are computed on."""
    each = made.chosen
    attach_(model, each.place, TRIED, each.method, made.structure, made.parts)


def _shared(choice: Choice, seed: int) -> dict[Method, Mapping[str, Tensor]]:
    """Return what each method drew for all of its weights."""
    sites: dict[Method, list[Site]] = {}
    for each in choice.chosen:
        sites.setdefault(each.method, []).append(each.place.site)
    generators = (generator_for(seed, choice.wanted.name, f"shared {method}") for method in sites)
    return {
        method: method.shared(of, generator)
        for (method, of), generator in zip(sites.items(), generators)
    }
