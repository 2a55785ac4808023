"""`tnc compile`: a whole recipe, from the model to the artifact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnc.commands.streaming import Stream, memory_line, streams
from tnc.commands.terminal import (
    AsJson,
    Progress,
    Sets,
    SpecName,
    print_json,
    print_note,
    print_result,
    working,
)
from tnc.errors import ArtifactError, Interrupted, QualityGate
from tnc.files import check_no_home, check_place

if TYPE_CHECKING:
    from tnc.decide.plan import Plan
    from tnc.decide.spec import Resolved
    from tnc.report.run_report import RunReport


def compile(
    spec: SpecName,
    out: Annotated[Path, typer.Option(help="The folder of the artifact.")],
    set_: Sets = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan to carry out exactly, from `tnc plan --out`.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an artifact that is there.")] = False,
    stream: Stream = None,
    as_json: AsJson = False,
) -> None:
    """Compile a model as a spec says; measure before and after; write an artifact."""
    from tnc.decide.plan import Plan
    from tnc.decide.spec import read_spec

    resolved = read_spec(spec, set_ or ())
    given = Plan.read(plan) if plan else None
    _check_free(out, force)
    if resolved.spec.adapters is not None and resolved.spec.rules:
        left = "`adapters` and `distill`" if resolved.spec.distill else "`adapters`"
        print_note(f"{left} of the spec come after this: tnc adapt SPEC --base {out}")
    streaming = streams(resolved.spec, stream)
    with working() as progress:
        if streaming:
            report = _streamed(resolved, out, given, progress, force)
        else:
            from tnc.recipe import distillation_folder, run

            with resumable(distillation_folder(out)):
                report = run(resolved, out, given, progress, force=force)
    if streaming:
        print_note(memory_line(dict(report.environment)))
    if as_json and not report.gate:
        print_json("run", report.as_json())
    elif not as_json:
        from tnc.report.table import plan_tables, run_tables

        print_result(plan_tables(report.plan))
        print_result("")
        print_result(run_tables(report))
    if report.gate:
        raise GateClosed(report)


class GateClosed(QualityGate):
    """The quality gate of the spec; `report` is what the run found, as plain data."""

    def __init__(self, report: RunReport) -> None:
        super().__init__(
            report.gate,
            where="quality.max_error",
            hint="raise the budget, or the bound; no artifact was written",
        )
        self.report = report.as_json()


def _streamed(
    resolved: Resolved, out: Path, given: Plan | None, progress: Progress, force: bool
) -> RunReport:
    from tnc.stream.running import partial_folder, run

    with resumable(partial_folder(out.resolve())):
        return run(resolved, out, given, progress, force=force)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Say where the work lies that a signal left to go on with. Raises Interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        if not folder.is_dir():
            raise
        raise Interrupted(
            "interrupted; what is done was kept",
            where=str(folder),
            hint="run the same again: it goes on from there",
        ) from None


def _check_free(out: Path, force: bool) -> None:
    """Refuse before minutes of work what saving would refuse after them."""
    from tnc.artifact.manifest import NAME

    check_place(out, ArtifactError)
    check_no_home(out, ArtifactError)
    whole = (out / NAME).is_file()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (force and whole)):
        raise ArtifactError(
            f"{out} is there already" + ("" if whole else " and is no artifact"),
            hint="choose another --out" + (", or replace it with --force" if whole else ""),
        )
