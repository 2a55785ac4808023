"""`tnc merge`: the model that base and adapters are, without adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnc.commands.terminal import AsJson, print_json, print_result, working
from tnc.errors import ArtifactError
from tnc.files import check_place


def merge(
    base: Annotated[
        str, typer.Argument(help="An artifact's folder, or a model source such as hf{path=...}.")
    ],
    adapter: Annotated[Path, typer.Argument(help="The folder of the adapters.")],
    out: Annotated[Path, typer.Option(help="The folder of the merged artifact.")],
    use: Annotated[
        list[str] | None,
        typer.Option("--use", metavar="NAME", help="Merge this one of the adapters; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an artifact that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add adapters to their base's weights in float32; write an artifact; say how exact it is."""
    check_place(out, ArtifactError)
    from tnc.artifact.saving import check_free

    check_free(out, force)
    with working() as progress:
        from tnc.merge_recipe import merge as run

        report = run(base, adapter, out, tuple(use or ()), progress, force=force)
    if as_json:
        print_json("merge", report.as_json())
    else:
        from tnc.report.adapter_table import merge_tables

        print_result(merge_tables(report))
