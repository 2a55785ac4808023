"""What compiled copies cost here: measured once, when they are compiled, and kept.

As with the loops, nothing is compiled inside of a forward that nobody asked to wait.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path

from tnc.files import write_text
from tnc.kernels.loops.rates import refused, stamp
from tnc.kernels.machine import fingerprint, path
from tnc.kernels.price import ITEM_BYTES, Copies, copies_of

SECONDS = 1.5
"""How long they are measured for."""


@cache
def known(dtype: str) -> Copies | None:
    """Return the prices measured on this machine; None where copies are not compiled."""
    if dtype not in ITEM_BYTES or not stamp():
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads(_file(dtype).read_text("utf-8"))
        if data["stamp"] == stamp():
            return copies_of(data["copy"], data["turn"])
    return None


def made(dtype: str) -> Copies | None:
    """Return the prices, compiling the copies (seconds) and measuring them where they are not
    known; None where numba is missing or cannot compile here."""
    found = known(dtype)
    if found is not None or dtype not in ITEM_BYTES or refused("float32"):
        return found
    file = _file(dtype)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"stamp": stamp(), **_measured(dtype)}) + "\n")
    known.cache_clear()
    return known(dtype)


def _file(dtype: str) -> Path:
    return path(dtype, 1).parent / f"copies-{fingerprint(dtype, 1)}.json"


def _measured(dtype: str) -> dict[str, object]:
    import torch

    from tnc.kernels.copying import COPIED, SHORT, moved, runs_of, turned
    from tnc.kernels.loops.turning import turn
    from tnc.kernels.timing import Point, Room, alone, read_all

    with alone(1):
        room = Room(getattr(torch, dtype))
        axes, shorts = (COPIED, runs_of(room.item)), (COPIED, SHORT)
        copies = [Point(moved(room, size, run, turn)) for size, run in product(*axes)]
        turns = [Point(turned(room, size, short, turn)) for size, short in product(*shorts)]
        read_all([*copies, *turns], SECONDS)
    best = [point.best for point in copies]
    return {
        "copy": {"overhead": min(best), "axes": axes, "values": best},
        "turn": {"axes": shorts, "values": [point.best for point in turns]},
    }
