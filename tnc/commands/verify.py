"""`tnc verify`: is an artifact whole, and does it still compute what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnc.commands.terminal import AsJson, print_json, print_result, working


def verify(
    folder: Annotated[Path, typer.Argument(help="The artifact's folder.")],
    as_json: AsJson = False,
) -> None:
    """Check every file of an artifact, reload it, and compare its outputs on the stored probe."""
    with working() as progress:
        progress("verify", 0, 1)
        from tnc.artifact import verify as check

        verified = check(folder)
    if as_json and verified.ok:
        print_json("verify", {"ok": True, "checks": dict(verified.checks)})
    elif not as_json:
        from tnc.report.table import lines_of

        print_result(lines_of(verified.checks))
    verified.require(folder)
