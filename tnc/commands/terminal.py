"""What commands print: results on stdout, everything else on stderr; JSON or for people."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, Protocol

import typer

VERSION = 1
WIDE = 240
"""Columns of tables that nobody sees on a terminal."""

TELL_SECONDS = 10.0
"""Between two lines on how a stage goes, where nobody sees a live one."""


class Progress(Protocol):
    """What commands tell of their work: a stage, how much is done, and words on how it goes."""

    def __call__(self, stage: str, done: int, total: int, told: str = "") -> None: ...


SpecName = Annotated[str, typer.Argument(help="A spec file, or the bare name of a recipe.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the spec; repeatable."),
]
OutProjTimes = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How often PEFT adds the delta of out_proj of nn.MultiheadAttention: 2 up to 0.21.2.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def print_json(kind: str, content: Mapping[str, Any]) -> None:
    """Print the one document of a `--json` run."""
    document = {"version": VERSION, "kind": kind, **content}
    print(json.dumps(document, indent=1), file=sys.__stdout__ if _redirected() else sys.stdout)


def print_result(content: Any) -> None:
    """Print text or a rich renderable on stdout."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=WIDE, no_color=True)
    console.print(content, markup=False, highlight=False)


def print_note(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def working() -> Iterator[Progress]:
    """Yield a progress function; while it lasts, what libraries print goes to stderr.

    On a terminal a live line with a bar, else one line for each stage, and words now and then.
    """
    with redirect_stdout(sys.stderr):
        if sys.stderr.isatty():
            with _live() as progress:
                yield progress
        else:
            yield _Lines()


class _Lines:
    def __init__(self) -> None:
        self._stage = ""
        self._told = 0.0

    def __call__(self, stage: str, done: int, total: int, told: str = "") -> None:
        if stage != self._stage:
            self._stage, self._told = stage, time.monotonic()
            print_note(f"{stage} ...")
        elif told and time.monotonic() - self._told >= TELL_SECONDS:
            self._told = time.monotonic()
            print_note(f"{stage}: {done}{f' of {total}' if total else ''}, {told}")


@contextmanager
def _live() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def progress(stage: str, done: int, total: int, told: str = "") -> None:
            description = f"{stage}: {told}" if told else stage
            bars.update(task, description=description, completed=done, total=total or None)

        yield progress


def _redirected() -> bool:
    return sys.stdout is sys.stderr
