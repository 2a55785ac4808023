"""`tnc inspect`: what an artifact, a plan or a spec holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tnc.commands.terminal import AsJson, Sets, print_json, print_note, print_result
from tnc.errors import ArtifactError, PlanError, SpecError

if TYPE_CHECKING:
    from tnc.decide.plan import Plan


def inspect(
    what: Annotated[str, typer.Argument(help="An artifact's folder, a plan (.json), or a spec.")],
    set_: Sets = None,
    draw: Annotated[str | None, typer.Option(help="Draw the structure of this site.")] = None,
    svg: Annotated[Path | None, typer.Option(help="With --draw: write the drawing here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show an artifact's plan, a plan, or a spec with everything that it extends; draw a site."""
    if svg and not draw:
        raise SpecError("--svg needs a site to draw", hint="add --draw SITE")
    found = _plan_at(what)
    if found is None:
        _show_spec(what, set_ or [], draw, as_json)
    elif draw:
        _draw(found, draw, svg)
    elif as_json:
        print_json("plan", {"digest": found.digest, "plan": found.to_json()})
    else:
        from tnc.report.table import plan_tables

        print_result(plan_tables(found))


def _plan_at(what: str) -> Plan | None:
    from tnc.decide.plan import Plan

    path = Path(what)
    if path.is_dir():
        if not (path / "plan.json").is_file():
            raise ArtifactError(
                f"{path} is no artifact: it has no plan.json",
                hint="`tnc compile SPEC --out DIR` makes one",
            )
        return Plan.read(path / "plan.json")
    return Plan.read(path) if path.suffix == ".json" else None


def _show_spec(name: str, overrides: list[str], draw: str | None, as_json: bool) -> None:
    from tnc.decide.spec import read_spec

    resolved = read_spec(name, overrides)
    if draw:
        raise PlanError("a spec has no structures to draw yet", hint="draw from a plan or artifact")
    if as_json:
        print_json("spec", {"digest": resolved.digest, "spec": resolved.spec.to_data()})
    else:
        print_result(resolved.text.rstrip())


def _draw(plan: Plan, site: str, svg: Path | None) -> None:
    from tnc.derive.draw import draw_svg, draw_text
    from tnc.files import write_text, writing

    structure = plan.entry(site).structure
    if structure is None:
        raise PlanError(f"{site} stays dense, so there is nothing to draw")
    if svg is None:
        print_result("\n\n".join(draw_text(term) for term in structure.terms))
        return
    for number, term in enumerate(structure.terms):
        file = svg if number == 0 else svg.with_stem(f"{svg.stem}-{number + 1}")
        with writing(file, PlanError):
            write_text(file, draw_svg(term))
        print_note(f"drawn in {file}")
