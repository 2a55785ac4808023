"""Signals that wait until a step is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred(tell: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back; yield a function that says whether one came.

    `tell` is called when it comes. A second signal acts as it did before. Outside of the main
    thread nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def hold(kind: int, frame: Any) -> None:
        came.append(kind)
        for each, handler in before.items():
            signal.signal(each, handler)
        tell()

    for kind in before:
        signal.signal(kind, hold)
    try:
        yield lambda: bool(came)
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
