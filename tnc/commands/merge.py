"""`tnc merge`: the model that base and adapters are, without adapters."""

from __future__ import annotations

from math import isfinite, nan
from pathlib import Path
from typing import Annotated

import typer

from tnc.commands.terminal import AsJson, OutProjTimes, print_json, print_result, working
from tnc.errors import ArtifactError, PlanError
from tnc.files import check_place


def merge(
    base: Annotated[
        str, typer.Argument(help="An artifact's folder, or a model source such as hf{path=...}.")
    ],
    adapter: Annotated[Path, typer.Argument(help="The folder of the adapters.")],
    out: Annotated[Path, typer.Option(help="The folder of the merged artifact.")],
    use: Annotated[
        list[str] | None,
        typer.Option(
            "--use",
            metavar="NAME[=SHARE]",
            help="Merge this one of the adapters, times a share; repeatable.",
        ),
    ] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            help="Of a PEFT checkpoint whose start changed its base (LoRA-GA, CorDA): the "
            "checkpoint saved before training."
        ),
    ] = None,
    out_proj_times: OutProjTimes = None,
    force: Annotated[bool, typer.Option(help="Replace an artifact that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add adapters to their base's weights in float32; write an artifact; say how exact it is."""
    check_place(out, ArtifactError)
    from tnc.artifact.saving import check_free

    check_free(out, force)
    shares = dict(_share(text) for text in use or ())
    with working() as progress:
        from tnc.merge_recipe import PeftRead
        from tnc.merge_recipe import merge as run

        given = PeftRead(initial, out_proj_times)
        report = run(base, adapter, out, shares, progress, force=force, peft=given)
    if as_json:
        print_json("merge", report.as_json())
    else:
        from tnc.report.adapter_table import merge_tables

        print_result(merge_tables(report))


def _share(text: str) -> tuple[str, float]:
    name, marked, number = text.partition("=")
    try:
        share = float(number) if marked else 1.0
    except ValueError:
        share = nan
    if not isfinite(share):
        raise PlanError(
            f"--use {text} gives an adapter no number as its share",
            where="--use",
            hint=f"such as --use {name}=0.5",
        )
    return name, share
