"""Errors at the command line: said once, kindly, with the right exit code."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from tnc.commands.terminal import print_json, print_note
from tnc.errors import TncError

OK, INTERNAL, USAGE, INTERRUPTED, CHANGED = 0, 1, 2, 5, 6


def report_failure(error: BaseException, as_json: bool, trace: bool) -> int:
    """Print an error and return the exit code."""
    code = exit_code(error)
    if trace:
        traceback.print_exception(error, file=sys.stderr)
    if as_json:
        print_json("error", {"error": _fields(error) | {"exit_code": code}})
    told = "" if trace else _told(error)
    if told:
        print_note(told)
    return code


def exit_code(error: BaseException) -> int:
    """Return 1 for an internal error, else what the kind of error says."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, TncError):
        return error.exit_code
    return USAGE if _usage(error) else INTERNAL


def _usage(error: BaseException) -> bool:
    from typer import TyperException

    return isinstance(error, TyperException)


def _told(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing was written"
    if isinstance(error, TncError):
        return f"error: {error}"
    if _usage(error):
        message = error.format_message()  # type: ignore[attr-defined]
        return f"error: {message}\n  try: tnc --help" if message else ""
    return (
        f"internal error: {type(error).__name__}: {error}\n"
        "  try: run it again with --traceback, and report what it prints"
    )


def _fields(error: BaseException) -> dict[str, Any]:
    fields: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, TncError):
        fields |= {"message": error.message, "where": error.where, "hint": error.hint}
    report = getattr(error, "report", None)
    if report is not None:
        fields["report"] = report
    problems = getattr(error, "problems", ())
    if problems:
        fields["problems"] = [problem.as_json() for problem in problems]
    return fields
