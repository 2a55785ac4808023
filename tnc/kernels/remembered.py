"""Choices that were timed, kept in the user's cache for this machine and version of torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch

from tnc.errors import KernelError
from tnc.files import write_text
from tnc.kernels.machine import current, fingerprint, path

VERSION = 4
Chosen = TypeVar("Chosen")


def remembered(
    where: tuple[str, int, str],
    task: Sequence[Any],
    make: Callable[[], tuple[Chosen, ...]],
    codec: tuple[Callable[[Chosen], Any], Callable[[Any], Chosen]],
    valid: Callable[[Chosen], bool] = lambda _: True,
) -> tuple[Chosen, ...]:
    """Return what was chosen for a task before, or make and keep it.

    `where` are dtype, threads and device, `codec` writes a choice as plain data and reads it.
    """
    machine = current(*where)
    here = [machine.key, machine.made, fingerprint(*where), torch.__version__]
    text = json.dumps([VERSION, *here, *where, *task])
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    file = path(where[0], where[1]).parent / "kernels" / f"{digest}.json"
    write, read = codec
    with suppress(OSError, ValueError, KeyError, TypeError, KernelError):
        kept = tuple(read(item) for item in json.loads(file.read_text("utf-8")))
        if kept and all(map(valid, kept)):
            return kept
    found = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps([write(choice) for choice in found]) + "\n")
    return found
