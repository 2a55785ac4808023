"""Options: candidates with their errors, in one unit for the whole model where that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import exp, isnan, log, sqrt

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tnc.decide.candidates import Candidate, ladder, members_of, name_of, template_of
from tnc.decide.spec import Spec
from tnc.decide.target import Target
from tnc.derive.cost import Cost
from tnc.derive.cut import cut
from tnc.errors import PlanError
from tnc.fit import Metric, choose, fits, tails
from tnc.planner.folding import searched
from tnc.planner.sensitivity import Weighing, unit_of
from tnc.rewrite.fitting import fit_sites, metric_of, weight_of
from tnc.rewrite.subject import Subject
from tnc.structures import Family

PROBED, SWEEPS, FULL = 4, 2, 8
"""How many sizes of a ladder are really fitted, and how long, where spectra are not exact."""


@dataclass(frozen=True)
class Option:
    """A candidate with its error: `error` in the unit of the objective, `relative` to the layer.

    The candidate None keeps the weight dense.
    """

    candidate: Candidate | None
    error: float
    relative: float

    def cost(self, target: Target) -> Cost:
        """Return the cost of the option."""
        return dense_of(target) if self.candidate is None else self.candidate.cost


def dense_of(target: Target) -> Cost:
    """Return the cost of the target's dense weights."""
    costs = [site.cost for site in target.sites]
    return Cost(
        sum(c.params for c in costs), sum(c.flops for c in costs), sum(c.bytes for c in costs), 0
    )


def metric_kind(subject: Subject, target: Target, spec: Spec) -> str:
    """Return the metric that a target is fitted in: 'none', 'inputs' or 'both'.

    `auto` takes the best that was measured. Spectral weights have at most their inputs, other
    complex weights no metric; the notes of the measurements say so. Raises PlanError where a metric
    is asked for by name and nothing was measured for it.
    """
    wanted = target.rule.metric or spec.metric
    measured = subject.measurements
    best = "none" if measured is None else "both" if measured.has_outputs else "inputs"
    site = target.sites[0]
    most = "inputs" if site.op == "spectral" else "none" if site.is_complex else "both"
    if wanted == "auto":
        return min(best, most, key=_METRICS.index)
    if _METRICS.index(wanted) > _METRICS.index(best):
        missing = "calibration data" if measured is None else "an evaluation (`evaluation:`)"
        raise PlanError(
            f"the metric {wanted!r} needs {missing}",
            where=target.where,
            hint=f"give {missing}, or set `metric: {best}`",
        )
    return min(wanted, most, key=_METRICS.index)


_METRICS = ("none", "inputs", "both")


def is_fixed(target: Target) -> bool:
    """Whether the spec fixes the target's ranks, so that nothing is left to decide."""
    return target.rule.fixed


def options_of(
    subject: Subject,
    target: Target,
    spec: Spec,
    curvature: float = 1.0,
    weighing: Weighing | None = None,
    notes: list[str] | None = None,
) -> tuple[Option, ...]:
    """Return what a target could become; staying dense comes first, unless the spec fixes ranks.

    What was searched for, and with what success, is told in `notes`.

    With output weights (metric 'both') the error is `curvature` times the expected squared change
    of the model's features a sample: the distance that the evaluation would measure, to second
    order, so errors of different layers add up. Without, it is the squared error of the layer's
    output relative to the output itself, unless the spec's sensitivity weighs the layers.
    """
    kind = metric_kind(subject, target, spec)
    metric = metric_of(subject.model, target.group, subject.measurements, kind)
    weight = weight_of(subject.model, target.group)
    _check_finite(weight, target)
    energy = metric.norm(weight, target.signature) ** 2 or 1.0
    unit = unit_of(target, metric, energy, spec.sensitivity, curvature, kind, weighing)
    options = [] if is_fixed(target) else [Option(None, 0.0, 0.0)]

    def fitted(candidate: Candidate) -> float:
        return _fitted(subject, target, candidate, metric, spec.seed, energy)

    def rungs(family: Family, asked: Target) -> tuple[Candidate, ...]:
        _check_fit(family, asked)
        found = ladder(family, asked, spectra(weight, asked, family, metric), spec.round_to)
        return tuple(_as_honoured(c, metric, weight.is_complex()) for c in found)

    def error_of(family: Family, share: float) -> float:
        asked = replace(target, rule=target.rule.model_copy(update={"ranks": (), "keep": share}))
        return squared_errors(rungs(family, asked), fitted, energy)[0] / energy

    told = [] if notes is None else notes
    members = searched(members_of(target), target, error_of, spec.seed, told)
    for family in members:
        candidates = rungs(family, target)
        for candidate, squared in zip(candidates, squared_errors(candidates, fitted, energy)):
            options.append(Option(candidate, _six(squared / unit), _six(sqrt(squared / energy))))
    return tuple(options)


def _check_finite(weight: Tensor, target: Target) -> None:
    bad = int((~weight.isfinite()).sum())
    if bad:
        raise PlanError(
            f"{target.name} holds {bad:,} of {weight.numel():,} entries that are NaN or infinite",
            where=target.where,
            hint="mend the checkpoint, or keep the weight by a rule with `structure: dense`",
        )


def confirmed(
    subject: Subject,
    target: Target,
    option: Option,
    spec: Spec,
    curvature: float = 1.0,
    weighing: Weighing | None = None,
) -> Option:
    """Return a chosen option with the error of a real fit, where it was only estimated.

    What a plan promises is checked when it is carried out.
    """
    candidate = option.candidate
    if candidate is None or candidate.exact:
        return option
    kind = metric_kind(subject, target, spec)
    metric = metric_of(subject.model, target.group, subject.measurements, kind)
    weight = weight_of(subject.model, target.group)
    energy = metric.norm(weight, target.signature) ** 2 or 1.0
    unit = unit_of(target, metric, energy, spec.sensitivity, curvature, kind, weighing)
    squared = _fitted(subject, target, candidate, metric, spec.seed, energy, full=True)
    return Option(candidate, _six(squared / unit), _six(sqrt(squared / energy)))


def _as_honoured(candidate: Candidate, metric: Metric, complex_weight: bool) -> Candidate:
    """Return a candidate whose spectrum is exact only where its fit honours the metric."""
    fit = choose(candidate.structure, candidate.fit)
    honoured = fit.honours(candidate.structure, metric)
    honoured = honoured and (fit.takes_complex or not complex_weight)
    return replace(candidate, exact=candidate.exact and honoured)


def _check_fit(family: Family, target: Target) -> None:
    """Raise PlanError where the fit of the rule does not take the structure, before any fitting."""
    name = target.rule.fit
    if name == "auto":
        return
    named = fits.get(name, where=target.where)
    reason = named.accepts(template_of(family, target).full())
    if target.sites[0].is_complex and not named.takes_complex:
        reason = "it takes real weights only, this one is complex"
    if reason:
        raise PlanError(
            f"fit {name!r} does not take {name_of(family)}: {reason}",
            where=target.where,
            hint="use `fit: auto`, or `als`, which takes every equation",
        )


def squared_errors(
    candidates: tuple[Candidate, ...], fitted: Callable[[Candidate], float], energy: float
) -> list[float]:
    """Return the squared error of each candidate of a ladder.

    Exact surrogates are taken as they are. Others are corrected by real fits at a few sizes, the
    logarithm of the ratio interpolated over the logarithm of the size; without a surrogate the
    error itself is interpolated. Candidates of different groups are interpolated apart.
    """
    if all(candidate.exact for candidate in candidates):
        return [max(0.0, candidate.surrogate) for candidate in candidates]
    groups = list(dict.fromkeys(candidate.group for candidate in candidates))
    if len(groups) > 1:
        by_group = {
            group: iter(
                squared_errors(tuple(c for c in candidates if c.group == group), fitted, energy)
            )
            for group in groups
        }
        return [next(by_group[candidate.group]) for candidate in candidates]
    count = len(candidates)
    places = sorted({round(k * (count - 1) / max(1, PROBED - 1)) for k in range(PROBED)})
    floor = 1e-12 * energy

    def base(candidate: Candidate) -> float:
        return floor if isnan(candidate.surrogate) else max(candidate.surrogate, floor)

    sizes = [log(candidates[p].cost.params) for p in places]
    ratios = [log(max(fitted(candidates[p]), floor) / base(candidates[p])) for p in places]
    return [base(c) * exp(float(np.interp(log(c.cost.params), sizes, ratios))) for c in candidates]


def spectra(
    weight: Tensor, target: Target, family: Family, metric: Metric
) -> Mapping[str, npt.NDArray[np.float64]]:
    """Return the squared error by rank for every bond of a family that cuts its network in two."""
    template = template_of(family, target)
    found: dict[str, npt.NDArray[np.float64]] = {}
    if template.parts:  # what one term of a sum leaves is not what the sum leaves
        return found
    network = template.at({name: 1 for name, _ in template.bounds}).terms[0]
    for bond, _ in template.bounds:
        if cut(template.equation, bond) is not None:
            found[bond] = tails(weight, network, bond, metric, target.signature).cpu().numpy()
    return found


def _fitted(
    subject: Subject,
    target: Target,
    candidate: Candidate,
    metric: Metric,
    seed: int,
    energy: float,
    full: bool = False,
) -> float:
    fitting = fit_sites(
        subject.model,
        target.group,
        candidate.structure,
        candidate.fit,
        metric,
        subject.measurements,
        seed,
        sweeps=FULL if full else SWEEPS,
    )
    return fitting.relative**2 * energy


def _six(value: float) -> float:
    """Round to six digits: thread counts change the last ones, and ties must not depend on them."""
    return float(f"{value:.6g}")
