"""`tnc export`: an artifact for another runtime."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tnc.commands.terminal import AsJson, print_json, print_result, working


class Format(StrEnum):
    """What an artifact can become."""

    torch_export = "torch-export"
    onnx = "onnx"
    dense = "dense"


def export(
    folder: Annotated[Path, typer.Argument(help="The artifact's folder.")],
    to: Annotated[Format, typer.Option(help="The form to export to.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    as_json: AsJson = False,
) -> None:
    """Export an artifact: torch.export's .pt2, ONNX, or a dense state dict in safetensors."""
    with working() as progress:
        progress(f"export to {to.value}", 0, 1)
        from tnc.artifact.exporting import export as write

        written = write(folder, to.value, out)
    if as_json:
        print_json("export", {"to": to.value, "file": str(written)})
    else:
        print_result(f"{to.value}: {written}, {written.stat().st_size:,} bytes")
