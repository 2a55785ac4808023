"""Put a plan together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tnc.decide.matching import match_rules
from tnc.decide.options import build
from tnc.decide.plan import Entry, Plan, Skip, Total
from tnc.decide.site import Site
from tnc.decide.spec import Spec
from tnc.decide.target import Target
from tnc.derive.cost import conv_chain
from tnc.errors import PlanError
from tnc.net import Structure
from tnc.planner.budget import budget_of, totals
from tnc.planner.options import Option, confirmed, dense_of, metric_kind, options_of
from tnc.planner.sensitivity import Weighing, notes_of
from tnc.planner.surveying import survey
from tnc.planner.task import Allocator, Allotment, Progress, Task, Visits, allocators
from tnc.planner.timing import layer_seconds
from tnc.planner.training import check_groups, groups_of
from tnc.planner.trial import Evaluator
from tnc.rewrite.subject import Subject


def make_plan(
    subject: Subject,
    spec: Spec,
    *,
    fingerprint: str,
    batches: Sequence[Any] = (),
    evaluation: Evaluator | None = None,
    locations: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    visits: Visits | None = None,
    weighing: Weighing | None = None,
) -> Plan:
    """Decide what every weight becomes.

    `subject` is the prepared model with its trace and measurements; `batches` are those on which
    the shortlist is rescored when the spec says `allocate: measured`. `visits` is for models whose
    weights are not all in memory: outside of its visits only shapes are looked at. Raises PlanError
    for rules that match nothing, InfeasibleBudget with the tightest budget that can be met.
    """
    trace = subject.trace
    visits = visits or (lambda targets: iter([(subject, targets)]))
    notes = notes_of(weighing)
    targets, skips = match_rules(
        trace.sites, spec, locations or {}, trace.shared_inputs, trace.untraced
    )
    check_groups(subject, targets, spec, locations or {})
    _check_unit(subject, spec)
    curvature = evaluation.curvature if evaluation is not None else 1.0
    figures: list[tuple[bool, tuple[str, ...]]] = []
    noted = _noted(visits, figures)
    offers, kinds = _offers(noted, targets, spec, curvature, progress, weighing, notes)
    seconds = _timed(offers, spec)
    dense_seconds = {t.name: seconds(t, Option(None, 0.0, 0.0)) for t in targets}
    budget = budget_of(subject.model, trace.sites, targets, spec, dense_seconds)
    allotment = _allot(
        Task(
            subject=subject,
            spec=spec,
            offers=offers,
            budget=budget,
            seconds=seconds,
            visits=visits,
            batches=batches,
            evaluation=evaluation,
            progress=progress,
            notes=notes,
        )
    )
    allotment = _confirmed(visits, allotment, spec, curvature, weighing)
    chosen = [(target, option.cost(target)) for target, option in allotment.chosen]
    notes += _cost_notes(totals(subject.model, trace.sites, budget.scope, chosen))
    plan = Plan(
        fingerprint=fingerprint,
        seed=spec.seed,
        entries=tuple(
            _entry(kinds[target.name], target, option, allotment)
            for target, option in sorted(allotment.chosen, key=lambda pair: pair[0].name)
        ),
        skips=tuple(
            sorted(
                (*skips, *(Skip(p, r) for p, r in trace.untraced)),
                key=lambda skip: (skip.site, skip.reason),
            )
        ),
        passes=tuple(spec.passes),
        budgets=tuple(
            sorted((n, float(budget.limits[n] + budget.fixed[n])) for n in budget.limits)
        ),
        objective=spec.objective,
        total=totals(subject.model, trace.sites, "*", chosen),
        scope=totals(subject.model, trace.sites, budget.scope, chosen),
        notes=(*notes, *_measured_notes(figures, spec)),
        background=survey(subject, offers, budget, spec, seconds),
    )
    return replace(plan, optimizer=groups_of(subject, plan, spec, locations or {}))


def _noted(visits: Visits, figures: list[tuple[bool, tuple[str, ...]]]) -> Visits:
    """Keep of every visit's measurements whether they weigh outputs, and the notes."""

    def noted(targets: Sequence[Target]) -> Iterator[tuple[Subject, Sequence[Target]]]:
        for subject, group in visits(targets):
            if subject.measurements is not None:
                figures.append((subject.measurements.has_outputs, subject.measurements.notes))
            yield subject, group

    return noted


def _offers(
    visits: Visits,
    targets: Sequence[Target],
    spec: Spec,
    curvature: float,
    progress: Progress | None,
    weighing: Weighing | None,
    notes: list[str],
) -> tuple[list[tuple[Target, tuple[Option, ...]]], dict[str, str]]:
    """Return what every target could become, and the metric that each is fitted in."""
    found: list[tuple[Target, tuple[Option, ...]]] = []
    kinds = {}
    for subject, group in visits(targets):
        for target in group:
            if progress:
                progress("candidates", len(found), len(targets))
            found.append((target, options_of(subject, target, spec, curvature, weighing, notes)))
            kinds[target.name] = metric_kind(subject, target, spec)
    places = {target.name: place for place, target in enumerate(targets)}
    return sorted(found, key=lambda offer: places[offer[0].name]), kinds


def _confirmed(
    visits: Visits,
    allotment: Allotment,
    spec: Spec,
    curvature: float,
    weighing: Weighing | None,
) -> Allotment:
    """Fit the chosen options whose errors are only estimated."""
    chosen = {target.name: option for target, option in allotment.chosen}
    open_ones = [t for t, o in allotment.chosen if o.candidate and not o.candidate.exact]
    for subject, group in visits(open_ones) if open_ones else ():
        for target in group:
            option = chosen[target.name]
            chosen[target.name] = confirmed(subject, target, option, spec, curvature, weighing)
    return replace(allotment, chosen=tuple((t, chosen[t.name]) for t, _ in allotment.chosen))


def _check_unit(subject: Subject, spec: Spec) -> None:
    """Refuse an error bound where errors are not in the evaluation's unit."""
    if spec.budget is None or spec.budget.error is None:
        return
    if spec.sensitivity not in ("auto", "outputs"):
        raise PlanError(
            f"sensitivity {spec.sensitivity!r} does not give errors in the evaluation's unit",
            where="budget.error",
            hint="bound the error with `sensitivity: auto`",
        )
    if subject.measurements is None or not subject.measurements.has_outputs:
        raise PlanError(
            "an error bound is in the unit of the evaluation, and nothing measured it",
            where="budget.error",
            hint="give calibration data and an evaluation, and `metric: both`",
        )


def _cost_notes(scope: Total) -> list[str]:
    if scope.flops <= scope.dense_flops:
        return []
    return [
        f"FLOPs rise from {scope.dense_flops:,} to {scope.flops:,} although parameters fall: "
        "the structures share parameters; add a FLOPs budget, or offer low-rank"
    ]


def _measured_notes(figures: Sequence[tuple[bool, tuple[str, ...]]], spec: Spec) -> tuple[str, ...]:
    """Say of what the errors in a plan are."""
    if not figures:
        told = "nothing was measured: errors are of the weights alone (Frobenius norm)"
        return (told,) if spec.metric != "none" else ()
    notes = tuple(sorted(note for _, found in figures for note in found))
    bare = spec.metric == "auto" and spec.sensitivity == "auto"
    if bare and not any(outputs for outputs, _ in figures):
        told = "no evaluation was given: errors are of the layers' outputs, not the model's"
        return (told, *notes)
    return notes


def _allot(task: Task) -> Allotment:
    """Choose by the spec's allocator. Raises PlanError where it cannot answer the budget."""
    allocator: Allocator = build(allocators, task.spec.allocate)
    reason = "" if task.fixed else allocator.refuses(task)
    if reason:
        raise PlanError(
            f"{task.spec.allocate} {reason}",
            where="allocate",
            hint="give `budget: {params: ...}`, or `allocate: surrogate`",
        )
    return allocator.allot(task)


def _timed(
    offers: Sequence[tuple[Target, Sequence[Option]]], spec: Spec
) -> Callable[[Target, Option], float]:
    if spec.budget is None or spec.budget.latency is None:
        return lambda target, option: 0.0
    cache: dict[tuple[str, str], float] = {}

    def seconds(target: Target, option: Option) -> float:
        structure = option.candidate.structure if option.candidate else None
        key = (target.name, str(structure))
        if key not in cache:
            cache[key] = layer_seconds(target, structure)
        return cache[key]

    return seconds


def _is_unchained(site: Site, structure: Structure) -> bool:
    """Whether a convolution's weight is rebuilt, in whole or in part."""
    chains = (conv_chain(term, structure.signature, site.work) for term in structure.terms)
    return site.op == "conv" and not all(chains)


def _entry(metric: str, target: Target, option: Option, allotment: Allotment) -> Entry:
    dense, cost, candidate = dense_of(target), option.cost(target), option.candidate
    if candidate is None:
        reason = f"{allotment.how}: no structure saves enough for its error; it stays dense"
    else:
        reason = f"{allotment.how}: predicted error {option.error:.3g}"
        if target.sites[0].rebuilt:
            reason += "; its code reads the weight itself, so it is rebuilt at each call"
        elif _is_unchained(target.sites[0], candidate.structure):
            reason += "; no chain of convolutions is cheaper, so it is rebuilt at each call"
        if target.group.stacked:
            reason += "; the weights were fitted as one tensor and share cores"
        elif len(target.sites) > 1:
            reason += "; the sites read one tensor and share an input factor"
    if allotment.remark:
        reason += f" ({allotment.remark})"
    return Entry(
        site=target.name,
        members=tuple(site.name for site in target.sites),
        structure=candidate.structure if candidate else None,
        fit=candidate.fit if candidate else "",
        family=candidate.family if candidate else "dense",
        metric=metric,
        error=option.error,
        relative=option.relative,
        params=cost.params,
        dense_params=dense.params,
        flops=cost.flops,
        dense_flops=dense.flops,
        reason=reason,
        rule=target.where,
    )
