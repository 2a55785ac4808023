"""Make a plan: candidates, their errors, the knapsack, and rescoring on the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, sqrt

import numpy as np
from torch import Tensor

from tnc.decide.allocate import Choice, allocate, minimise_cost
from tnc.decide.candidates import Candidate, cost_of, kept, ladder, name_of, template_of
from tnc.decide.matching import Target
from tnc.decide.plan import Entry, Plan, Skip, Total
from tnc.decide.spec import Spec
from tnc.derive.cost import Cost, dense_cost
from tnc.errors import InfeasibleBudget, PlanError
from tnc.fit import Metric, tails
from tnc.rewrite.fitting import fit_sites, metric_of, weight_of
from tnc.rewrite.subject import Subject


@dataclass(frozen=True)
class Option:
    """A candidate with its error in the unit of the objective, and relative to the layer."""

    candidate: Candidate | None
    error: float
    relative: float

    def cost(self, target: Target) -> Cost:
        """Return the cost of the option; None stands for the dense weight."""
        return dense_of(target) if self.candidate is None else self.candidate.cost


def dense_of(target: Target) -> Cost:
    """Return the cost of the target's dense weights."""
    costs = [site.cost for site in target.sites]
    return Cost(
        sum(c.params for c in costs), sum(c.flops for c in costs), sum(c.bytes for c in costs), 0
    )


def options_of(subject: Subject, target: Target, spec: Spec) -> tuple[Option, ...]:
    """Return what a target could become, with errors; keeping it dense comes first unless fixed."""
    kind = metric_kind(subject, target, spec)
    metric = metric_of(subject.model, target.sites, subject.measurements, kind)
    weight = weight_of(subject.model, target.sites)
    energy = metric.norm(weight, target.signature) ** 2 or 1.0
    fixed = target.rule.ranks is not None or target.rule.keep is not None
    options = [] if fixed else [Option(None, 0.0, 0.0)]
    for family in target.rule.structures:
        found = spectra(weight, target, family, metric)
        for candidate in ladder(family, target, found, spec.round_to):
            squared = candidate.surrogate
            if isnan(squared) or not candidate.exact:
                squared = _fitted_error(subject, target, candidate, metric, spec) ** 2 * energy
            options.append(Option(candidate, *_errors(squared, energy, metric)))
    return tuple(options)


def metric_kind(subject: Subject, target: Target, spec: Spec) -> str:
    """Return the metric that a target is fitted in: its rule's, the spec's, or what is possible."""
    wanted = target.rule.metric or spec.metric
    if wanted == "auto":
        if subject.measurements is None:
            return "none"
        return "both" if subject.measurements.has_outputs else "inputs"
    return wanted


def spectra(
    weight: Tensor, target: Target, family: object, metric: Metric
) -> Mapping[str, np.ndarray]:
    """Return the squared error by rank for every bond of a family that cuts its network in two."""
    template = template_of(family, target)  # type: ignore[arg-type]
    found = {}
    for bond, _ in template.bounds:
        network = template.at({name: 1 for name, _ in template.bounds}).terms[0]
        values = tails(weight, network, bond, metric)
        if values is not None:
            found[bond] = values.cpu().numpy()
    return found
