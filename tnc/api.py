"""The compile-a-model API: capture, measure, plan, compile, save, densify.

Models are run by plain kernels here: what is decided does not depend on the machine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tnc.artifact import verify
from tnc.artifact.loading import guard_saving_
from tnc.artifact.modules import classes_of
from tnc.capture import Measurements, Trace, capture
from tnc.capture import measure as _measure
from tnc.decide.matching import match_rules
from tnc.decide.options import build
from tnc.decide.pipeline import allocators, pipeline
from tnc.decide.plan import Plan
from tnc.decide.spec import Spec
from tnc.errors import CaptureError, PlanError
from tnc.fit import fits
from tnc.nn.generated import plain_kernels
from tnc.planner import Evaluator, make_plan
from tnc.planner.sensitivity import Weighing, scale_of, weighing_of
from tnc.rewrite import Compiled, Pass, Record, Subject, run_passes
from tnc.rewrite.subject import ties_of

Example = tuple[tuple[Any, ...], dict[str, Any]]
Progress = Callable[[str, int, int], None]

__all__ = [
    "Compiled",
    "compensate",
    "compile",
    "densify",
    "export",
    "measure",
    "plan",
    "save",
    "trace",
    "verify",
]


@plain_kernels()
def trace(model: nn.Module, *args: Any, **kwargs: Any) -> Trace:
    """Trace a model on an example input and list the weights that could be rewritten.

    >>> import torch, tnc
    >>> found = tnc.trace(torch.nn.Linear(8, 4), torch.ones(2, 8))
    >>> [(site.path, site.op, str(site.signature)) for site in found.sites]
    [('weight', 'linear', '4 <- 8')]
    """
    return capture(model, args, kwargs)


@plain_kernels()
def measure(
    model: nn.Module,
    trace: Trace,
    batches: Iterable[Any],
    evaluation: Evaluator | None = None,
    progress: Progress | None = None,
) -> Measurements:
    """Stream calibration batches through a model and keep the second moments of every site.

    With an `evaluation` also the weights of every layer's output in the model's features.
    """
    return _measure(
        model,
        trace.sites,
        batches,
        gradients=evaluation.probe if evaluation is not None else None,
        progress=progress,
    )


@plain_kernels()
def plan(
    model: nn.Module,
    spec: Spec,
    *,
    example: Example | Tensor | None = None,
    calibration: Iterable[Any] | None = None,
    evaluation: Evaluator | None = None,
    locations: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Decide what every weight of a model becomes; the model is not touched.

    `example` is one input: a tensor, or (args, kwargs); the first calibration batch serves where it
    is not given. `calibration` is an iterable of batches (a mapping is keyword arguments, a tuple
    positional ones). Raises PlanError, InfeasibleBudget, CaptureError.
    """
    work = _prepare(model, spec, example, calibration, evaluation, locations, progress)
    return work.plan


@plain_kernels()
def compile(
    model: nn.Module,
    spec: Spec,
    *,
    plan: Plan | None = None,
    example: Example | Tensor | None = None,
    calibration: Iterable[Any] | None = None,
    evaluation: Evaluator | None = None,
    locations: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Return a compiled copy of a model; the model that is given stays as it is.

    With a `plan`, exactly that plan is carried out; it must carry the model's fingerprint. Without,
    one is made from the spec. Further arguments as for `plan`.

    >>> import torch, tnc
    >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    >>> spec = tnc.Spec(version=1, rules=[{"match": "0", "structure": "low-rank", "keep": 0.5}])
    >>> made = tnc.compile(net, spec, example=torch.ones(4, 32))
    >>> made.model[0].structure.shapes
    {'B': (32, 8), 'A': (8, 32)}
    """
    work = _prepare(model, spec, example, calibration, evaluation, locations, progress, plan)
    steps = [(name, step) for name, step in work.passes if step.stage == "apply"]
    outcome = run_passes(
        replace(work.subject, plan=work.plan, original=work.subject.model), steps, progress
    )
    done = outcome.subject
    guard_saving_(done.model)
    return Compiled(
        done.model,
        work.plan,
        done.trace,
        work.records + outcome.records,
        done.reparams,
        done.probe,
        classes_of(model),
        done.measurements,
    )


@plain_kernels()
def compensate(
    model: nn.Module,
    original: nn.Module,
    calibration: Iterable[Any],
    *,
    rank: int = 16,
    match: Sequence[str] = ("*",),
    example: Example | Tensor | None = None,
) -> Compiled:
    """Give a model that another tool pruned or rounded low-rank branches for what it lost.

    `model` and `original` have the same modules; the weights of `model` are kept, frozen, and each
    linear one that differs gets `B A` of `rank`, the best for its inputs on `calibration` (EoRA:
    Liu et al., 2024). Structures of tnc have this within a plan's budget: `X + low-rank`. The
    result is saved, verified and loaded as any compiled model, with `model` as its source.

    >>> import torch, tnc
    >>> original = torch.nn.Sequential(torch.nn.Linear(16, 16))
    >>> pruned = torch.nn.Sequential(torch.nn.Linear(16, 16))
    >>> rounded = {name: v.round(decimals=1) for name, v in original.state_dict().items()}
    >>> _ = pruned.load_state_dict(rounded)
    >>> made = tnc.compensate(pruned, original, [torch.randn(64, 16)], rank=2)
    >>> made.model[0].structure.shapes
    {'W': (16, 16), 'B': (16, 2), 'A': (2, 16)}
    """
    from tnc.rewrite.compensating import compensate as run

    if rank < 1:
        raise PlanError(f"rank is {rank}", hint="a branch has a rank of 1 or more")
    batches = tuple(calibration)
    probe = _example(example, batches)
    return run(model, original, batches, probe, rank, tuple(match), classes_of(model))


def densify(model: nn.Module) -> nn.Module:
    """Return a copy of a model with every structured layer rebuilt as the library's dense layer."""
    from tnc.passes.densify import densify_

    dense = copy.deepcopy(model)
    densify_(dense)
    guard_saving_(dense, False)
    return dense


def save(compiled: Compiled, out: str | Path, **options: Any) -> Path:
    """Save a compiled model as an artifact folder; see `tnc.artifact.save`."""
    from tnc.artifact import save as write

    return write(compiled, out, **options)


def export(folder: str | Path, to: str, out: str | Path, model: nn.Module | None = None) -> Path:
    """Export an artifact to 'torch-export', 'onnx' or 'dense'; see `tnc.artifact.export`."""
    from tnc.artifact import export as write

    return write(folder, to, out, model)


@dataclass(frozen=True)
class _Work:
    subject: Subject
    plan: Plan
    passes: tuple[tuple[str, Pass], ...]
    records: tuple[Record, ...]


def _prepare(
    model: nn.Module,
    spec: Spec,
    example: Example | Tensor | None,
    calibration: Iterable[Any] | None,
    evaluation: Evaluator | None,
    locations: Mapping[str, str] | None,
    progress: Progress | None,
    given: Plan | None = None,
) -> _Work:
    _check_fits(spec, locations or {})
    allocator = build(allocators, spec.allocate)
    batches = tuple(calibration) if calibration is not None else ()
    evaluation = evaluation or (spec.evaluation if batches else None)
    probe = _example(example, batches)
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
        found = _measure(
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
    return _Work(subject, made, steps, outcome.records)


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
    found = _measure(subject.model, sites, batches, weigh=scale.probe, progress=progress)
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


def _example(example: Example | Tensor | None, batches: tuple[Any, ...]) -> Example:
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
    if len(example) == 2 and isinstance(example[0], tuple) and isinstance(example[1], dict):
        return example
    return tuple(example), {}
