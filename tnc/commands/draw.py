"""`tnc draw`: any network as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnc.commands.terminal import print_note, print_result
from tnc.errors import SpecError
from tnc.files import check_place, write_text, writing


def draw(
    what: Annotated[
        str,
        typer.Argument(
            help="An equation with sizes, a topology, a structure family, an artifact or plan "
            "(.json) with a SITE, the folder of a search, or a file of networks."
        ),
    ],
    site: Annotated[str, typer.Argument(help="A site of the artifact or the plan.")] = "",
    out: Annotated[Path, typer.Option(help="The drawing to write.")] = Path("network.svg"),
    shape: Annotated[str, typer.Option(help="Of a family: the weight, OUTxIN.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set an option of a family; repeatable."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of a family: every rank, at most its maximum.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Of a search: how many of the best.")] = 4,
    columns: Annotated[int, typer.Option(min=1, help="Drawings in a row.")] = 2,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="Label bonds by their sizes alone.")
    ] = False,
) -> None:
    """Draw networks: lines as thick as the logarithm of their sizes; the same as text on stdout."""
    from tnc.derive.draw import draw_sheet, draw_text
    from tnc.report.drawable import panels_of

    check_place(out, SpecError)
    if out.suffix != ".svg":
        raise SpecError(f"cannot write {out}: drawings are SVG", hint=f"{out.with_suffix('.svg')}")
    panels = panels_of(what, site, shape, tuple(set_ or ()), rank, count)
    for panel in panels:
        text = "\n\n".join(map(draw_text, panel.networks))
        print_result(f"{panel.caption}\n{text}\n" if panel.caption else text)
    with writing(out, SpecError):
        write_text(out, draw_sheet(panels, columns, not sizes) + "\n")
    print_note(f"drawn in {out}")
