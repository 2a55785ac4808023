"""Waiting for a place that takes no more: told once, tried again, given up as an interruption."""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tnc.errors import Interrupted

T = TypeVar("T")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EAGAIN, errno.ENFILE}
_BUSY = ("full", "locked", "busy", "disk i/o")
LONGEST = 5.0
"""Seconds between two tries, at most; the first wait is a hundredth of that."""


@dataclass
class Waiting:
    """Carry out writes; where the disk is full or the file locked, wait up to `seconds` for it.

    `tell` is called once for each time of waiting. `resume` says how the run is taken up again.
    """

    tell: Callable[[str], None] = lambda text: None
    seconds: float = 120.0
    resume: str = ""
    sleep: Callable[[float], None] = time.sleep

    def __call__(self, act: Callable[[], T], what: str) -> T:
        """Return what `act` returns. Raises Interrupted when waiting was of no use."""
        told, begun, pause = False, time.monotonic(), LONGEST / 100
        while True:
            try:
                return act()
            except (OSError, sqlite3.OperationalError) as error:
                if not may_pass(error):
                    raise
                waited = time.monotonic() - begun
                if waited >= self.seconds:
                    raise Interrupted(
                        f"{what} could not be written for {self.seconds:g} seconds: {error}",
                        hint=f"make room{f', then: {self.resume}' if self.resume else ''}",
                    ) from error
                if not told:
                    self.tell(
                        f"{what} cannot be written: {error}; trying again for {self.seconds:g} "
                        "seconds"
                    )
                    told = True
            self.sleep(min(pause, LONGEST))
            pause *= 2


def may_pass(error: Exception) -> bool:
    """Say whether what kept a write from its place may be gone in a while."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(sign in str(error).lower() for sign in _BUSY)
