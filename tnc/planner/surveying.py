"""Survey what a plan was chosen from: error curves, the budget frontier, the module list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import isfinite

from torch import nn

from tnc.decide.allocation import Choice, Effort, allocate
from tnc.decide.background import Background, Curve, Part, thinned
from tnc.decide.spec import Spec
from tnc.decide.target import Target
from tnc.errors import InfeasibleBudget
from tnc.planner.budget import Budget, cost_vector
from tnc.planner.options import Option
from tnc.rewrite.subject import Subject

MOST = 24
"""Points that are kept of a curve, evenly spaced."""

STEPS = 20
"""Budgets at which the frontier is solved."""

QUICK = Effort(exact=False)
"""The Lagrangian alone: milliseconds, and close to the best."""

Offers = Sequence[tuple[Target, Sequence[Option]]]


def survey(
    subject: Subject,
    offers: Offers,
    budget: Budget,
    spec: Spec,
    seconds: Callable[[Target, Option], float],
) -> Background:
    """Return the plain numbers behind a plan. A budget that nothing meets ends the frontier."""
    resource = next(iter(budget.limits), "params")
    return Background(
        curves=tuple(curve for target, options in offers for curve in _curves(target, options)),
        resource=resource,
        frontier=_frontier(offers, budget, resource, spec, seconds),
        parts=_parts(subject),
    )


def _curves(target: Target, options: Sequence[Option]) -> list[Curve]:
    found: dict[tuple[str, tuple[str, ...]], list[tuple[float, ...]]] = defaultdict(list)
    for option in options:
        if option.candidate is None or not isfinite(option.error):
            continue
        ranks = [
            (name, dict(term.sizes)[name])
            for term in option.candidate.structure.terms
            for name in term.equation.bonds
        ]
        cost = option.candidate.cost
        point = (cost.params, cost.flops, option.error, option.relative, *(r for _, r in ranks))
        found[option.candidate.family, tuple(name for name, _ in ranks)].append(point)
    return [
        Curve(target.name, family, names, thinned(sorted(points), MOST))
        for (family, names), points in found.items()
    ]


def _frontier(
    offers: Offers,
    budget: Budget,
    resource: str,
    spec: Spec,
    seconds: Callable[[Target, Option], float],
) -> tuple[tuple[float, float], ...]:
    """Solve one resource at evenly spaced budgets from the least that can be met to dense."""
    choices = [
        [
            Choice(
                cost_vector(
                    option.cost(target),
                    seconds(target, option),
                    (resource,),
                    budget.counts(target),
                ),
                option.error,
            )
            for option in options
            if isfinite(option.error)
        ]
        for target, options in offers
    ]
    if not choices or not all(choices):
        return ()
    least = sum(min(choice.cost[0] for choice in site) for site in choices)
    most = sum(max(choice.cost[0] for choice in site) for site in choices)
    found = set()
    for step in range(STEPS + 1):
        limit = least + (most - least) * step / STEPS
        try:
            best = allocate(choices, {resource: limit}, objective=spec.objective, effort=QUICK)
        except InfeasibleBudget:
            continue
        found.add((best.costs[0] + budget.fixed[resource], float(f"{best.error:.6g}")))
    return tuple(sorted(found))


def _parts(subject: Subject) -> tuple[Part, ...]:
    calls = {path: place for place, path in enumerate(subject.trace.calls)}
    flops: dict[str, int] = defaultdict(int)
    for site in subject.trace.sites:
        flops[site.name.rpartition(".")[0]] += site.cost.flops
    seen: set[int] = set()
    found = []
    for path, module in subject.model.named_modules():
        own = _own(module, seen)
        if own:
            found.append(Part(path, type(module).__name__, own, flops[path]))
    return tuple(sorted(found, key=lambda part: calls.get(part.name, len(calls))))


def _own(module: nn.Module, seen: set[int]) -> int:
    """Count the module's own parameters; tied ones belong to the first that has them."""
    own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
    seen.update(id(p) for p in own)
    return sum(p.numel() for p in own)
