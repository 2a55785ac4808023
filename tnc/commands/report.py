"""`tnc report`: one HTML page about an artifact, a plan, several side by side, or a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tnc.commands.terminal import AsJson, print_json, print_note
from tnc.errors import ArtifactError
from tnc.files import check_place, write_text, writing


def report(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Artifacts' folders, plans (.json), or the folder of a search."),
    ] = None,
    plan: Annotated[
        list[Path] | None, typer.Option(help="A plan alone, from `tnc plan --out`; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    as_json: AsJson = False,
) -> None:
    """Write a page about what was decided and measured; it needs no network to be read."""
    places = [*(what or ()), *map(str, plan or ())]
    if not places:
        raise ArtifactError(
            "there is nothing to report on", hint="name an artifact's folder, or --plan FILE"
        )
    from tnc.report.search_data import is_search

    searches = [place for place in places if is_search(place)]
    if searches and len(places) > 1:
        raise ArtifactError(
            f"{searches[0]} is a search, which has a page of its own", hint="name it alone"
        )
    write_page(places, out, as_json)


def write_page(places: Sequence[str], out: Path, as_json: bool) -> None:
    """Write a page, or print its data. Raises ArtifactError, PlanError, SearchError."""
    from tnc.report.page_data import page_data
    from tnc.report.search_data import is_search, search_data
    from tnc.report.subject import read_reported

    if not as_json:
        check_place(out, ArtifactError)
        if out.is_dir():
            raise ArtifactError(f"cannot write {out}: it is a folder", hint="name a file in it")
    if is_search(places[0]):
        data = search_data(places[0])
    else:
        data = page_data([read_reported(place) for place in places])
    if as_json:
        print_json(data["kind"], data)
        return
    from tnc.report.page import render

    with writing(out, ArtifactError):
        write_text(out, render(data))
    print_note(f"report written to {out}")
