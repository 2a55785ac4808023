"""Run a recipe on a checkpoint larger than memory; go on where a killed run stopped."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

import tnc
from tnc.artifact.claims import check_savings
from tnc.artifact.manifest import checksum, file_state
from tnc.artifact.modules import classes_of
from tnc.artifact.saving import Contents, check_free, complete, distinct_state
from tnc.decide.options import as_mapping
from tnc.decide.plan import Plan
from tnc.decide.spec import Resolved, Spec
from tnc.errors import ArtifactError, PlanError, SourceError
from tnc.files import flush, put_in_place, recover_folder, writing
from tnc.nn.generated import plain_kernels
from tnc.report.environment import environment
from tnc.report.run_report import RunReport, Size
from tnc.rewrite import Compiled, Subject
from tnc.rewrite.shaping import compiled_shapes
from tnc.sources import Streamed, models
from tnc.stream import journal as journals
from tnc.stream.blockwise import CACHE, Work, carry_out_blocks, measured_entries
from tnc.stream.journal import Journal
from tnc.stream.memory import peak_resident
from tnc.stream.planning import Prepared, check_spec, example_of, plan_streamed, prepare
from tnc.stream.steps import STEP_BYTES, Step, carry_out, steps_of

Progress = Callable[[str, int, int], None]


@plain_kernels()
def plan(resolved: Resolved, progress: Progress | None = None) -> Plan:
    """Plan a spec's model without loading it. Raises SourceError, PlanError."""
    check_spec(resolved.spec)
    prepared = _prepared(resolved.spec)
    return plan_streamed(prepared, resolved.spec, resolved.locations, progress)


@plain_kernels()
def run(
    resolved: Resolved,
    out: Path,
    plan: Plan | None = None,
    progress: Progress | None = None,
    *,
    force: bool = False,
    step_bytes: int = STEP_BYTES,
) -> RunReport:
    """Compile a spec's model into an artifact, a few weights in memory at a time.

    Work goes into a folder beside `out`, `.NAME.partial`; every file in it counts once its digest
    is in the journal. A run that finds that folder goes on with it, and ends with the same bytes.
    `out` appears when it is complete. With `plan`, exactly that plan is carried out. Raises
    ArtifactError, PlanError, SourceError.
    """
    started = time.perf_counter()
    out = out.resolve()
    check_spec(resolved.spec)
    recover_folder(out)
    check_free(out, force)
    prepared = _prepared(resolved.spec)
    folder = partial_folder(out)
    with writing(folder, ArtifactError):
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder, _owner(resolved, prepared.streamed, plan, step_bytes))
        try:
            made = _planned(resolved, prepared, plan, journal, folder, progress)
            compiled = compiled_shapes(prepared.subject, made)
            files = _Files(journal, folder)
            if any(measured_entries(made)):
                work = Work(prepared.divided(), made, compiled.model, journal, folder)
                carry_out_blocks(work, files.write, progress)
            else:
                steps = steps_of(prepared.subject, compiled, step_bytes)
                _carry_out(steps, prepared, compiled, files, progress)
            shutil.rmtree(folder / CACHE, ignore_errors=True)
            tensors = files.tensors
            report = _report(resolved, prepared, compiled, time.perf_counter() - started)
            _finish(folder, resolved, prepared, compiled, tensors, report)
            put_in_place(folder, out)
            (out / journals.NAME).unlink()
        finally:
            journal.close()
    return report


def partial_folder(out: Path) -> Path:
    """Return where the work on an artifact lies until it is complete."""
    return out.with_name(f".{out.name}.partial")


def _prepared(spec: Spec) -> Prepared:
    if spec.model is None:
        raise SourceError(
            "the spec names no model", where="model", hint="add `model: {kind: hf, path: ...}`"
        )
    streamed = spec.model.stream()
    batches = spec.calibration.batches(streamed) if spec.calibration else []
    return prepare(streamed, example_of(streamed, batches), batches)


def _owner(
    resolved: Resolved, streamed: Streamed, plan: Plan | None, step_bytes: int
) -> dict[str, Any]:
    """Name everything that the bytes of the artifact depend on."""
    return {
        "checkpoint": streamed.checkpoint.identity,
        "spec": resolved.digest,
        "given plan": plan.digest if plan else "",
        "step bytes": step_bytes,
        "tnc": tnc.__version__,
        "torch": version("torch"),
    }


def _planned(
    resolved: Resolved,
    prepared: Prepared,
    given: Plan | None,
    journal: Journal,
    folder: Path,
    progress: Progress | None,
) -> Plan:
    """Return the plan of the run that is continued, the one that is given, or a new one."""
    file, known = folder / "plan.json", journal.find("plan")
    if known is not None and file.is_file():
        found = Plan.read(file)
        if found.digest == known["plan"]:
            return found
    spec, scratch = resolved.spec, folder / CACHE
    made = given or plan_streamed(prepared, spec, resolved.locations, progress, scratch)
    _check_plan(made, prepared.subject)
    made.save(file)
    journal.add({"plan": made.digest})
    return made


def _check_plan(plan: Plan, subject: Subject) -> None:
    if plan.fingerprint != subject.trace.fingerprint:
        raise PlanError(
            "the plan was made for another model: the fingerprints differ "
            f"({plan.fingerprint[:12]} and {subject.trace.fingerprint[:12]})",
            hint="make a new plan for this model: `tnc plan --stream`",
        )
    measured = [
        e for e in plan.entries if e.structure is not None and e.metric not in ("none", "inputs")
    ]
    if measured:
        raise PlanError(
            f"the plan fits {len(measured)} weights in a measured metric, streaming has none",
            where=f"entry {measured[0].site}, metric {measured[0].metric!r}",
            hint="make the plan with `tnc plan --stream`",
        )


class _Files:
    """The files of the artifact: each counts once its digest is in the journal."""

    def __init__(self, journal: Journal, folder: Path) -> None:
        self._journal, self._folder = journal, folder
        self.tensors: dict[str, str] = {}

    def write(self, file: str, make: Callable[[], dict[str, Tensor]]) -> None:
        """Make a file, unless it is done; note in which file each tensor lies."""
        done = self._journal.find("file", file)
        if done is None or file_state(self._folder / file, done["sha256"]) != "ok":
            found = make()
            names = sorted(found)
            part = self._folder / f".{file}"
            save_file(found, part)
            del found
            flush(part)
            os.replace(part, self._folder / file)
            flush(self._folder)
            done = {"file": file, "sha256": checksum(self._folder / file), "tensors": names}
            self._journal.add(done)
        self.tensors.update(dict.fromkeys(done["tensors"], file))


def _carry_out(
    steps: tuple[Step, ...],
    prepared: Prepared,
    compiled: Subject,
    files: _Files,
    progress: Progress | None,
) -> None:
    """Carry the steps out that are not done yet, in the plain norm."""
    for number, step in enumerate(steps):
        if progress:
            progress("fit and write", number, len(steps))
        lender, subject = prepared.lender, prepared.subject
        files.write(step.file, partial(carry_out, step, subject, compiled, lender))


def _report(resolved: Resolved, prepared: Prepared, compiled: Subject, seconds: float) -> RunReport:
    plan = compiled.plan
    assert plan is not None
    sizes = []
    for model, flops in (
        (prepared.subject.model, plan.total.dense_flops),
        (compiled.model, plan.total.flops),
    ):
        held = list(model.parameters())
        stored = sum(p.numel() * p.element_size() for p in held)
        sizes.append(Size(sum(p.numel() for p in held), stored, flops))
    largest = max(p.numel() * p.element_size() for p in prepared.subject.model.parameters())
    told = (
        ("checkpoint bytes", str(prepared.streamed.checkpoint.nbytes)),
        ("largest weight bytes", str(largest)),
        ("peak resident bytes", str(peak_resident())),
    )
    return RunReport(
        before=sizes[0],
        after=sizes[1],
        timings=(),
        figures=(),
        held_out=0,
        seconds=(("stream", round(seconds, 3)),),
        plan=plan,
        spec=resolved.digest,
        environment=(*environment(), *told),
    )


def _finish(
    folder: Path,
    resolved: Resolved,
    prepared: Prepared,
    compiled: Subject,
    tensors: Mapping[str, str],
    report: RunReport,
) -> None:
    subject, streamed = prepared.subject, prepared.streamed
    assert compiled.plan is not None and resolved.spec.model is not None
    done = Compiled(
        compiled.model,
        compiled.plan,
        subject.trace,
        (),
        compiled.reparams,
        subject.probe,
        classes_of(subject.model),
    )
    check_savings(done)
    _, tied = distinct_state(compiled.model)
    contents = Contents(
        as_mapping(models, resolved.spec.model),
        tuple(streamed.files),
        resolved.text,
        _lasting(report),
        resolved.spec.kernels,
    )
    complete(folder, done, tensors, tied, (), contents)


def _lasting(report: RunReport) -> dict[str, Any]:
    """Return the report without what differs from run to run: artifacts are equal to the byte."""
    data = report.as_json()
    for name in ("seconds", "environment"):
        data.pop(name)
    return data
