"""Plan a model whose weights are in files: sites from shapes, errors from one weight at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tnc.capture import capture
from tnc.capture.trace import Trace
from tnc.decide.options import build
from tnc.decide.pipeline import allocators, pipeline
from tnc.decide.plan import Plan
from tnc.decide.spec import Spec
from tnc.decide.target import Target
from tnc.errors import CaptureError, PlanError
from tnc.planner import make_plan
from tnc.planner.task import Progress
from tnc.rewrite import Subject
from tnc.rewrite.subject import ties_of
from tnc.sources import Streamed
from tnc.sources.source import Call, as_call
from tnc.stream.lending import Lender

CARRIED_OUT = ("factorize", "find-sites", "keep-ties", "share-input-factors")
MEASURED = ("match-outputs",)
"""Passes that do nothing without calibration, which streaming does not do."""

NEEDS = {
    "fold-batch-norm": ("conv-batchnorm", "linear-batchnorm"),
    "merge-linear": ("linear-linear",),
}
"""Passes that change weights before they are planned, and the links that they look for."""


@dataclass(frozen=True)
class Prepared:
    """A model without memory: its subject, who lends the weights, what was left out."""

    subject: Subject
    lender: Lender
    streamed: Streamed
    notes: tuple[str, ...] = ()


def prepare(streamed: Streamed, example: Call) -> Prepared:
    """Find the sites of a model without its weights. Raises CaptureError."""
    trace, notes = _trace(streamed, example)
    subject = Subject(streamed.model, trace, example, ties=ties_of(streamed.model))
    notes = (*streamed.notes, *notes)
    return Prepared(subject, Lender(streamed.model, streamed.checkpoint), streamed, notes)


def plan_streamed(
    prepared: Prepared,
    spec: Spec,
    locations: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Decide what every weight becomes, with one target's weights in memory at a time.

    Raises PlanError for what streaming cannot do.
    """
    check_spec(spec)
    subject = prepared.subject
    steps, notes = _passes(spec.passes, subject.trace)

    def visits(targets: Sequence[Target]) -> Iterator[tuple[Subject, Sequence[Target]]]:
        for target in targets:
            with prepared.lender.lent(site.name for site in target.sites):
                yield subject, (target,)

    allocate = spec.allocate
    if build(allocators, allocate).needs_model:
        allocate = "surrogate"
        notes += (
            f"allocate: {spec.allocate} became surrogate: streaming has no whole model to try on",
        )
    made = make_plan(
        subject,
        spec.model_copy(update={"passes": steps, "allocate": allocate}),
        fingerprint=subject.trace.fingerprint,
        locations=locations,
        progress=progress,
        visits=visits,
    )
    return replace(made, notes=(*made.notes, *prepared.notes, *notes))


def check_spec(spec: Spec) -> None:
    """Raise PlanError for parts of a spec that streaming cannot carry out."""
    refused = {
        "quality": "no quality gate: the original and the compiled model are never run whole",
        "export": "no exports: they need the whole model",
    }
    for name, reason in refused.items():
        if getattr(spec, name):
            raise PlanError(
                f"streaming has {reason}",
                where=name,
                hint=f"drop `{name}`, or compile with --no-stream on a larger machine",
            )
    for asked, where in ((spec.metric, "metric"), *((r.metric, "rules") for r in spec.rules)):
        if asked in ("inputs", "both"):
            raise PlanError(
                f"streaming fits weights in the plain norm, the spec wants metric {asked!r}",
                where=where,
                hint="set `metric: none`, or compile with --no-stream on a larger machine",
            )
    for name, step in pipeline(spec.passes):
        if not name.startswith((*CARRIED_OUT, *MEASURED, *NEEDS)):
            raise PlanError(
                f"streaming cannot run pass {name!r} ({step.stage})",
                where="passes",
                hint=f"it carries out {', '.join(CARRIED_OUT)}",
            )


def _passes(texts: Sequence[str], trace: Trace) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Leave out the passes that would change weights, where there is something for them to do."""
    kinds = {link.kind for link in trace.links}
    idle = [t for t in texts if not kinds.intersection(NEEDS.get(t.partition("{")[0], ()))]
    notes = [f"pass {text} is left out: it changes weights" for text in texts if text not in idle]
    return tuple(idle), tuple(notes)


def _trace(streamed: Streamed, example: Call) -> tuple[Trace, tuple[str, ...]]:
    """Run the model on shapes alone, if need be without the mask, whose values models look at."""
    args, kwargs = example
    shapes = tuple(map(_on_meta, args)), {k: _on_meta(v) for k, v in kwargs.items()}
    buffers = [(m, dict(m._buffers)) for m in streamed.model.modules()]
    for module, held in buffers:
        module._buffers.update({name: _on_meta(value) for name, value in held.items()})
    try:
        try:
            return capture(streamed.model, *shapes, graph=False), ()
        except CaptureError:
            if "attention_mask" not in kwargs:
                raise
            shapes[1].pop("attention_mask")
            return capture(streamed.model, *shapes, graph=False), ()
    except CaptureError as error:
        raise CaptureError(
            f"the model cannot be traced without its weights: {error.message}",
            where=error.where,
            hint="its code looks at values; compile with --no-stream where memory allows",
        ) from error
    finally:
        for module, held in buffers:
            module._buffers.update(held)


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def example_of(streamed: Streamed, batches: Sequence[Any]) -> Call:
    """Return the example input. Raises CaptureError where there is none."""
    found = streamed.example() or (as_call(batches[0]) if batches else None)
    if found is None:
        raise CaptureError(
            "there is no example input to trace the model with",
            where="calibration",
            hint="add calibration data; `{kind: random, shapes: [[...]]}` is enough",
        )
    return found
