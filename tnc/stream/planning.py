"""Plan a model whose weights are in files: sites from shapes, errors from one weight at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
from tnc.planner.task import Progress, Visits
from tnc.rewrite import Subject
from tnc.rewrite.subject import ties_of
from tnc.sources import Streamed
from tnc.sources.source import Call, as_call
from tnc.stream.blocks import Undivided, find_blocks
from tnc.stream.calibrating import Divided, visits
from tnc.stream.lending import Lender

Visited = Iterator[tuple[Subject, Sequence[Target]]]


@dataclass(frozen=True)
class Prepared:
    """A model without memory: its subject, who lends the weights, what was left out."""

    subject: Subject
    lender: Lender
    streamed: Streamed
    batches: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()

    def divided(self) -> Divided:
        """Return the model cut into blocks, to run it. Raises Undivided."""
        subject = self.subject
        blocks = find_blocks(subject.model, subject.trace)
        return Divided(subject, self.lender, blocks, self.batches)


def prepare(streamed: Streamed, example: Call, batches: Sequence[Any] = ()) -> Prepared:
    """Find the sites of a model without its weights. Raises CaptureError."""
    trace, notes = _trace(streamed, example)
    subject = Subject(streamed.model, trace, example, ties=ties_of(streamed.model))
    notes = (*streamed.notes, *notes)
    lender = Lender(streamed.model, streamed.checkpoint)
    return Prepared(subject, lender, streamed, tuple(batches), notes)


def plan_streamed(
    prepared: Prepared,
    spec: Spec,
    locations: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    scratch: Path | None = None,
) -> Plan:
    """Decide what every weight becomes, with the weights of one block or target in memory.

    With calibration data and a metric, blocks are measured on what they read; where the model
    cannot be run block by block, the plan says why and is made in the plain norm. Raises PlanError
    for what streaming cannot do, Undivided for such a model where the spec names the metric.
    """
    check_spec(spec)
    wanted = {spec.metric, *(rule.metric for rule in spec.rules)}
    if not prepared.batches or wanted <= {"none", None}:
        return _made(prepared, spec, _one_by_one(prepared), False, (), locations, progress)
    try:
        divided = prepared.divided()

        def by_blocks(targets: Sequence[Target]) -> Visited:
            return visits(divided, targets, progress, scratch)

        return _made(prepared, spec, by_blocks, True, (), locations, progress)
    except Undivided as error:
        if "inputs" in wanted:
            raise
        told = (
            f"weights are fitted in the plain norm: the model cannot be measured ({error.message})"
        )
        return _made(prepared, spec, _one_by_one(prepared), False, (told,), locations, progress)


def _one_by_one(prepared: Prepared) -> Visits:
    def visited(targets: Sequence[Target]) -> Visited:
        for target in targets:
            with prepared.lender.lent(site.name for site in target.sites):
                yield prepared.subject, (target,)

    return visited


def _made(
    prepared: Prepared,
    spec: Spec,
    visited: Visits,
    measured: bool,
    notes: tuple[str, ...],
    locations: Mapping[str, str] | None,
    progress: Progress | None,
) -> Plan:
    subject = prepared.subject
    steps, left = _passes(spec.passes, subject.trace, measured)
    notes += left
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
        visits=visited,
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
    if spec.sensitivity not in ("auto", "none"):
        raise PlanError(
            f"streaming never runs the whole model, which sensitivity {spec.sensitivity!r} needs",
            where="sensitivity",
            hint="set `sensitivity: auto`, or compile with --no-stream on a larger machine",
        )
    for asked, where in ((spec.metric, "metric"), *((r.metric, "rules") for r in spec.rules)):
        if asked == "both" or (asked == "inputs" and spec.calibration is None):
            raise PlanError(
                f"streaming cannot fit in metric {asked!r}: "
                + ("no gradients flow through the whole model" if asked == "both" else "no data"),
                where=where,
                hint="set `metric: inputs` with calibration data, or `metric: none`",
            )
    for name, step in pipeline(spec.passes):
        if not step.in_parts.carried and not step.in_parts.looks_for:
            raise PlanError(
                f"streaming cannot run pass {name!r} ({step.stage})",
                where="passes",
                hint="drop it, or compile with --no-stream on a larger machine",
            )


def _passes(
    texts: Sequence[str], trace: Trace, measured: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Leave out the passes that need the whole model, where there is something for them to do."""
    kinds = {link.kind for link in trace.links} | {site.op for site in trace.sites}
    kept, notes = [], []
    for text, step in pipeline(texts):
        does = step.in_parts
        idle = not kinds.intersection(does.looks_for) or (does.measures and not measured)
        if does.carried or idle:
            kept.append(text)
        else:
            notes.append(f"pass {text} is left out: it needs the whole model")
    return tuple(kept), tuple(notes)


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
