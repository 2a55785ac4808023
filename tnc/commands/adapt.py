"""`tnc adapt`: adapters beside a model's weights, as a spec asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnc.commands.compile import resumable
from tnc.commands.terminal import (
    AsJson,
    OutProjTimes,
    Sets,
    SpecName,
    print_json,
    print_note,
    print_result,
    working,
)
from tnc.errors import ArtifactError, QualityGate
from tnc.files import check_place


def adapt(
    spec: SpecName,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the adapters. Without it, and --peft, they are trained and "
            "measured, and not kept."
        ),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="What is adapted, where it is not the spec's model: an artifact's folder, "
            "or a model source such as hf{path=...}."
        ),
    ] = "",
    peft: Annotated[
        Path | None,
        typer.Option(help="A folder to write the adapters to for PEFT too; of several, one each."),
    ] = None,
    peft_rank: Annotated[
        int | None,
        typer.Option(
            help="For PEFT, what is no product of two matrices is written as the nearest one of "
            "this rank at most; without this and --peft-energy it is refused."
        ),
    ] = None,
    peft_energy: Annotated[
        float | None,
        typer.Option(help="As --peft-rank, of the least rank that keeps this share of the norm^2."),
    ] = None,
    out_proj_times: OutProjTimes = None,
    set_: Sets = None,
    force: Annotated[bool, typer.Option(help="Replace adapters that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Attach the adapters of a spec, train them where it says `distill`, measure, write them."""
    from tnc.decide.spec import read_spec

    resolved = read_spec(spec, set_ or ())
    if out is not None:
        check_place(out, ArtifactError)
        _check_free(out, force)
    if peft is not None:
        check_place(peft, ArtifactError)
        if out is not None and out.resolve() == peft.resolve():
            raise ArtifactError(
                f"--out and --peft are the same folder, {out}", hint="choose another --peft"
            )
    elif (peft_rank, peft_energy, out_proj_times) != (None, None, None):
        raise ArtifactError(
            "--peft-rank, --peft-energy and --out-proj-times say how --peft writes",
            hint="give --peft FOLDER",
        )
    if out is None and peft is None:
        print_note("without --out or --peft the adapters are measured and not kept")
    with working() as progress:
        from tnc.adapt_recipe import PeftForm, run
        from tnc.recipe import distillation_folder

        with resumable(distillation_folder(out or Path("-"))):
            form = PeftForm(peft, peft_rank, peft_energy, out_proj_times) if peft else None
            report = run(resolved, out, base, progress, force=force, peft=form)
    if as_json and not report.gate:
        print_json("adapt", report.as_json())
    elif not as_json:
        from tnc.report.adapter_table import adapt_tables

        print_result(adapt_tables(report))
    if report.gate:
        found = QualityGate(
            report.gate,
            where="quality.max_error",
            hint="raise the budget or the ranks, train longer, or raise the bound; nothing was "
            "written",
        )
        found.report = report.as_json()  # type: ignore[attr-defined]
        raise found


def _check_free(out: Path, force: bool) -> None:
    """Refuse before minutes of work what saving would refuse after them."""
    from tnc.adapters.storing import check_free

    check_free(out, force)
