"""`tnc plan`: decide, show, explain, compare; change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnc.commands.failures import CHANGED
from tnc.commands.streaming import Stream, streams
from tnc.commands.terminal import AsJson, Progress, Sets, print_json, print_note, print_result
from tnc.commands.terminal import working as at_work
from tnc.errors import PlanError
from tnc.files import check_place

if TYPE_CHECKING:
    from tnc.decide.plan import Plan


def plan(
    spec: Annotated[str, typer.Argument(help="A spec, a recipe's name, or a plan (.json).")],
    set_: Sets = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan to this file.")] = None,
    diff: Annotated[Path | None, typer.Option(help="Show what differs from this plan.")] = None,
    explain: Annotated[str | None, typer.Option(help="Say why a site becomes that.")] = None,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="With --diff: exit 6 when plans differ.")
    ] = False,
    stream: Stream = None,
    as_json: AsJson = False,
) -> None:
    """Decide what every weight becomes and print it; the model is not touched."""
    from tnc.decide.plan import Plan

    if out:
        _check_file(out)
    other = Plan.read(diff) if diff else None
    made = Plan.read(spec) if spec.endswith(".json") else _make(spec, set_ or [], stream)
    if out:
        made.save(out)
        print_note(f"plan {made.digest[:12]} written to {out}")
    changes = other.diff(made) if other else ()
    if as_json:
        extra = {"changes": list(changes)} if other else {}
        print_json("plan", {"digest": made.digest, "plan": made.to_json(), **extra})
    elif explain:
        print_result(made.explain(explain))
    elif other:
        print_result("\n".join(changes) or "no changes")
    else:
        from tnc.report.table import plan_tables

        print_result(plan_tables(made))
    if detailed_exitcode and changes:
        raise typer.Exit(CHANGED)


def _check_file(out: Path) -> None:
    """Refuse before the work what writing would refuse after it."""
    check_place(out, PlanError)
    if out.is_dir():
        raise PlanError(f"cannot write {out}: it is a folder", hint="name a file in it")


def _make(spec: str, overrides: list[str], stream: bool | None) -> Plan:
    from tnc.decide.spec import read_spec

    resolved = read_spec(spec, overrides)
    streaming = streams(resolved.spec, stream)
    with at_work() as progress:
        if streaming:
            from tnc.stream.running import plan

            return plan(resolved, progress)
        return _planned(resolved, progress)


def _planned(resolved, progress: Progress) -> Plan:  # type: ignore[no-untyped-def]
    progress("load", 0, 1)
    from tnc import api
    from tnc.inputs import load

    inputs = load(resolved.spec)
    return api.plan(
        inputs.loaded.model,
        resolved.spec,
        locations=resolved.locations,
        progress=progress,
        **inputs.given,
    )
