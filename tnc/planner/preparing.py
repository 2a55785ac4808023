"""Everything before a plan is carried out: trace, early passes, measuring, planning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from tnc.capture import capture, measure
from tnc.capture.batches import batches_of
from tnc.capture.model import model_of
from tnc.decide.matching import match_rules
from tnc.decide.options import build
from tnc.decide.pipeline import allocators, pipeline
from tnc.decide.plan import Plan
from tnc.decide.spec import Spec
from tnc.errors import CaptureError, PlanError
from tnc.fit import fits
from tnc.nn.adapted import refusal
from tnc.planner.making import make_plan
from tnc.planner.sensitivity import Weighing, scale_of, weighing_of
from tnc.planner.training import check_groups
from tnc.planner.trial import Evaluator
from tnc.rewrite import Pass, Record, Subject, run_passes
from tnc.rewrite.subject import ties_of

Example = tuple[tuple[Any, ...], dict[str, Any]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Work:
    """A model made ready: its subject, its plan, and all passes of the pipeline."""

    subject: Subject
    plan: Plan
    passes: tuple[tuple[str, Pass], ...]
    records: tuple[Record, ...]


def prepare(
    model: nn.Module,
    spec: Spec,
    example: Example | Tensor | None,
    calibration: Iterable[Any] | None,
    evaluation: Evaluator | None,
    locations: Mapping[str, str] | None,
    progress: Progress | None,
    given: Plan | None = None,
) -> Work:
    """Run the early passes, measure what the fits need, and plan, unless a plan is given."""
    _check_fits(spec, locations or {})
    model_of(model)
    reason = refusal(model, "a model with adapters is not compiled")
    if reason:
        raise PlanError(
            reason,
            where="model",
            hint="compile the base and adapt that, or merge first: tnc.adapters.of(model).unload()",
        )
    allocator = build(allocators, spec.allocate)
    batches = batches_of(calibration)
    evaluation = evaluation or (spec.evaluation if batches else None)
    probe = example_of(example, batches)
    trace = capture(model, *probe, graph=False)
    if given is not None and given.fingerprint != trace.fingerprint:
        raise PlanError(
            "the plan was made for another model: the fingerprints differ "
            f"({given.fingerprint[:12]} and {trace.fingerprint[:12]})",
            hint="make a new plan for this model: `tnc plan`, or tnc.plan(model, spec)",
        )
    texts = given.passes if given is not None else spec.passes
    steps = tuple(pipeline(texts))
    subject = Subject(model, trace, probe, batches=batches, ties=ties_of(model))
    early = [(name, step) for name, step in steps if step.stage == "prepare"]
    outcome = run_passes(subject, early, progress)
    subject = outcome.subject
    if not any(name == "find-sites" for name, _ in early):
        subject = replace(subject, trace=capture(subject.model, *probe, graph=False))
    weighing = None
    if given is not None:
        wanted, outputs = _planned_metrics(given, bool(batches), evaluation is not None)
    else:
        wanted, outputs = _spec_metrics(subject, spec, locations or {})
        weighing = _weighed(subject, spec, locations or {}, evaluation, batches, progress)
    if batches and wanted:
        sites = [site for site in subject.trace.sites if site.name in wanted]
        found = measure(
            subject.model,
            sites,
            batches,
            gradients=evaluation.probe if evaluation and outputs else None,
            apart=given is None and evaluation is not None and allocator.needs_model,
            progress=progress,
        )
        subject = replace(subject, measurements=found)
    made = given or make_plan(
        subject,
        spec,
        fingerprint=trace.fingerprint,
        batches=batches,
        evaluation=evaluation,
        locations=locations,
        progress=progress,
        weighing=weighing,
    )
    return Work(subject, made, steps, outcome.records)


def _check_fits(spec: Spec, locations: Mapping[str, str]) -> None:
    """Raise UnknownName for a fit that is not there, before anything is done."""
    for number, rule in enumerate(spec.rules):
        if rule.fit != "auto":
            place = locations.get(f"rules.{number}.fit", f"rules[{number}].fit")
            fits.get(rule.fit, where=place)


def _spec_metrics(
    subject: Subject, spec: Spec, locations: Mapping[str, str]
) -> tuple[set[str], bool]:
    """Return the sites that a spec has measured, and whether their outputs are wanted too."""
    targets, _ = match_rules(subject.trace.sites, spec, locations, untraced=subject.trace.untraced)
    check_groups(subject, targets, spec, locations)
    metrics = {rule.metric or spec.metric for rule in spec.rules}
    sites = {site.name for target in targets for site in target.sites}
    return sites if metrics != {"none"} else set(), bool(metrics & {"both", "auto"})


def _weighed(
    subject: Subject,
    spec: Spec,
    locations: Mapping[str, str],
    evaluation: Evaluator | None,
    batches: tuple[Any, ...],
    progress: Progress | None,
) -> Weighing | None:
    """Measure what weighs the layers, where the metrics do not; apart, so that fits are as ever."""
    metrics = {rule.metric or spec.metric for rule in spec.rules if rule.structure}
    scale = scale_of(spec, evaluation, batches, metrics <= {"both", "auto"})
    if scale is None:
        return None
    targets, _ = match_rules(subject.trace.sites, spec, locations, untraced=subject.trace.untraced)
    names = {site.name for target in targets for site in target.sites}
    sites = [site for site in subject.trace.sites if site.name in names]
    found = measure(subject.model, sites, batches, weigh=scale.probe, progress=progress)
    return weighing_of(scale, found)


def _planned_metrics(plan: Plan, data: bool, evaluation: bool) -> tuple[set[str], bool]:
    """Return the same for a plan. Raises PlanError where what its metrics need is not given."""
    fitted = [e for e in plan.entries if e.structure is not None and e.metric != "none"]
    outputs = [entry for entry in fitted if entry.metric == "both"]
    missing = "calibration data" if fitted and not data else ""
    if not missing and outputs and not evaluation:
        missing = "an evaluation"
    if missing:
        entry = (outputs or fitted)[0]
        raise PlanError(
            f"the plan fits {len(fitted)} weights in a measured metric, which needs {missing}",
            where=f"entry {entry.site}, metric {entry.metric!r}",
            hint=f"give {missing} as for the plan, or make a plan with `metric: none`",
        )
    held = [e for e in plan.entries if e.structure is not None] if fitted else []
    return {name for entry in held for name in entry.members}, bool(outputs)


def example_of(example: Example | Tensor | None, batches: tuple[Any, ...]) -> Example:
    """Return one input as (args, kwargs). Raises CaptureError where there is none."""
    if example is None:
        if not batches:
            raise CaptureError(
                "there is no example input to trace the model with",
                hint="give example=tensor, example=(args, kwargs), or calibration batches",
            )
        example = batches[0]
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if not isinstance(example, tuple | list):
        return (example,), {}
    if len(example) == 2 and isinstance(example[0], tuple) and isinstance(example[1], dict):
        return example
    return tuple(example), {}
