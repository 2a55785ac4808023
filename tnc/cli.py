"""The command line: `tnc compile | plan | adapt | merge | inspect | report | draw | verify |
export | search | spec | doctor`.

Exit codes: 0 ok; 1 internal error; 2 usage or spec; 3 infeasible budget; 4 quality gate;
5 interrupted; 6 plans differ (`plan --detailed-exitcode`).
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from tnc.commands import (
    adapt,
    compile,
    doctor,
    draw,
    export,
    inspect,
    merge,
    plan,
    report,
    search,
    spec,
    verify,
)
from tnc.commands.failures import report_failure

_INTERRUPTED_BY_TYPER = 130

app = typer.Typer(
    name="tnc",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A declarative tensor-network and structured-layer compiler for PyTorch.",
)
app.command("compile")(compile.compile)
app.command("plan")(plan.plan)
app.command("adapt")(adapt.adapt)
app.command("merge")(merge.merge)
app.command("inspect")(inspect.inspect)
app.command("report")(report.report)
app.command("draw")(draw.draw)
app.command("verify")(verify.verify)
app.command("export")(export.export)
app.command("doctor")(doctor.doctor)
app.add_typer(search.app, name="search")
app.add_typer(spec.app, name="spec")


def _print_version(wanted: bool) -> None:
    if wanted:
        from tnc import __version__

        typer.echo(f"tnc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    """Take the options that come before a command; `main` reads --traceback anywhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    trace, as_json = "--traceback" in given, "--json" in given
    given = [word for word in given if word != "--traceback"]
    try:
        with _terminated_as_interrupted():
            code = typer.main.get_command(app).main(given, prog_name="tnc", standalone_mode=False)
        if code == _INTERRUPTED_BY_TYPER:
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        return report_failure(error, as_json, trace)
    return code if isinstance(code, int) else 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end this block as SIGINT does, so that nothing half written stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
