"""Whether a command streams the weights: as asked, or because they do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from tnc.commands.terminal import print_note
from tnc.decide.spec import Spec

Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Read the weights tensor by tensor; chosen by itself for checkpoints that are large "
        "beside the memory.",
    ),
]


def streams(spec: Spec, asked: bool | None) -> bool:
    """Say whether to stream, and say why where nobody asked."""
    if asked is not None or spec.model is None:
        return bool(asked)
    from tnc.stream.memory import SHARE, available, too_large

    nbytes = spec.model.stored_bytes()
    chosen = too_large(nbytes)
    if chosen:
        print_note(
            f"streaming: the checkpoint has {_mib(nbytes)}, {SHARE} times that is more than the "
            f"{_mib(available())} available (--no-stream loads it whole)"
        )
    return chosen


def memory_line(environment: Mapping[str, str]) -> str:
    """Say how much memory a streamed compilation took."""
    parts = ("peak resident", "largest weight", "checkpoint")
    told = [f"{name} {_mib(int(environment[f'{name} bytes']))}" for name in parts]
    return "streamed: " + ", ".join(told)


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):,.0f} MiB"
