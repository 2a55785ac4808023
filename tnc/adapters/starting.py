"""First values: of every chosen weight, each computed while what it needs is at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tnc.adapters.attach import generator_for
from tnc.adapters.choosing import Choice, Chosen
from tnc.adapters.given import Given
from tnc.adapters.method import Method, Parts, Start
from tnc.decide.site import Site
from tnc.net import Structure

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

    Gradients and moments are used as they come, those of one part of the weights at a time.
    Raises PlanError where what a method needs is not given.
    """
    for each in choice.chosen:
        for need in each.method.needs:
            where = each.rule.where or choice.wanted.where
            given.check(need, f"{type(each.method).__name__} starts", where)
    moved = [each for each in choice.chosen if "moment" in each.method.needs]
    graded = [each for each in choice.chosen if "gradient" in each.method.needs]
    given.measure_(model, [each.place for each in moved if each in graded])
    made: dict[str, Started] = {}
    shared = _shared(choice, seed)

    def begin(each: Chosen, gradient: Tensor | None = None) -> None:
        made[each.name] = _begun(
            model, each, given, choice.wanted.name, seed, gradient, shared[each.method]
        )
        if report is not None:
            report("start", len(made), len(choice.chosen))

    for each, gradient in given.gradients(model, graded):
        begin(each, gradient)
        del gradient  # the next part's must not find it alive
    for each in given.moments(model, [each for each in moved if each not in graded]):
        begin(each)
    for each in choice.chosen:
        if each.name not in made:
            begin(each)
    return tuple(made[each.name] for each in choice.chosen)


def _begun(
    model: nn.Module,
    each: Chosen,
    given: Given,
    name: str,
    seed: int,
    gradient: Tensor | None,
    shared: Mapping[str, Tensor],
) -> Started:
    site, needs = each.place.site, each.method.needs
    structure = each.method.structure(site)
    with torch.no_grad():
        start = Start(
            site,
            structure,
            generator_for(seed, name, site.name),
            partial(each.place.mapped, model),
            gradient,
            given.moment(site) if "moment" in needs else None,
            given.was(site) if "original" in needs else None,
            shared,
        )
        parts = each.method.start(start)
        return Started(each, parts.structure or structure, parts)


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
