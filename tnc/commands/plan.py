"""`tnc plan`: decide, show, explain, compare; change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tnc.commands.failures import CHANGED
from tnc.commands.streaming import Stream, streams
from tnc.commands.terminal import AsJson, Progress, Sets, print_json, print_note, print_result
from tnc.commands.terminal import working as at_work
from tnc.errors import PlanError
from tnc.files import check_place

if TYPE_CHECKING:
    from tnc.decide.adapter_plan import AdapterPlan
    from tnc.decide.plan import Plan
    from tnc.decide.spec import Resolved


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
    base: Annotated[
        str, typer.Option(help="Plan adapters beside this: an artifact, or a model source.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Decide what every weight becomes, and which adapters it gets; the model is not touched."""
    from tnc.decide.plan import Plan

    if out:
        _check_file(out)
    other = Plan.read(diff) if diff else None
    resolved = None if spec.endswith(".json") else _read(spec, set_ or [])
    beside = _adapters(resolved, base, out or diff or explain)
    if resolved is not None and beside is not None and (base or not resolved.spec.rules):
        _show_adapters(beside, as_json)
        return
    made = Plan.read(spec) if resolved is None else _make(resolved, stream)
    if out:
        made.save(out)
        print_note(f"plan {made.digest[:12]} written to {out}")
    changes = other.diff(made) if other else ()
    if as_json:
        extra: dict[str, Any] = {"changes": list(changes)} if other else {}
        extra |= {"adapters": _plain(beside)} if beside else {}
        print_json("plan", {"digest": made.digest, "plan": made.to_json(), **extra})
    elif explain:
        print_result(made.explain(explain))
    elif other:
        print_result("\n".join(changes) or "no changes")
    else:
        from tnc.report.table import plan_tables

        print_result(plan_tables(made))
        if beside is not None:
            print_result("")
            _show_adapters(beside, as_json=False)
    if detailed_exitcode and changes:
        raise typer.Exit(CHANGED)


def _check_file(out: Path) -> None:
    """Refuse before the work what writing would refuse after it."""
    check_place(out, PlanError)
    if out.is_dir():
        raise PlanError(f"cannot write {out}: it is a folder", hint="name a file in it")


def _read(spec: str, overrides: list[str]) -> Resolved:
    from tnc.decide.spec import read_spec

    return read_spec(spec, overrides)


def _adapters(resolved: Resolved | None, base: str, other: object) -> AdapterPlan | None:
    """Plan the adapters that a spec asks for; none where it asks for none."""
    asked = resolved.spec.adapters if resolved is not None else None
    if asked is None:
        if base:
            raise PlanError(
                "--base is about adapters, and the spec asks for none", where="adapters"
            )
        return None
    assert resolved is not None
    if other and (base or not resolved.spec.rules):
        raise PlanError(
            "--out, --diff and --explain are about plans of compression, this is one of adapters",
            hint="--json prints it",
        )
    if resolved.spec.rules and not base and any(adapter.budget for adapter in asked):
        print_note("budgets of adapters ask for gradients of the compiled model: give --base")
        return None
    with at_work() as progress:
        progress("adapters", 0, 1)
        from tnc.adapt_recipe import plan

        return plan(resolved, base)


def _show_adapters(plan: AdapterPlan, as_json: bool) -> None:
    if as_json:
        print_json("plan", {"adapters": _plain(plan)})
        return
    from tnc.report.adapter_table import adapter_tables

    print_result(adapter_tables(plan))


def _plain(plan: AdapterPlan) -> dict[str, Any]:
    return {"digest": plan.digest, **plan.to_json()}


def _make(resolved: Resolved, stream: bool | None) -> Plan:
    streaming = streams(resolved.spec, stream)
    with at_work() as progress:
        if streaming:
            from tnc.stream.running import plan

            return plan(resolved, progress)
        return _planned(resolved, progress)


def _planned(resolved: Resolved, progress: Progress) -> Plan:
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
