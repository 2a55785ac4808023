"""Another process, under another hash seed and on two threads: what must be the same there.

One for all tests of a process: starting one costs seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_running: list[subprocess.Popen[str]] = []


def elsewhere(place: str, *given: Any) -> Any:
    """Return what a function `module:name` gives there, as JSON carries it."""
    if not _running or _running[-1].poll() is not None:
        _running.append(_started())
    process = _running[-1]
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([place, given]) + "\n")
    process.stdin.flush()
    found, wrong = json.loads(process.stdout.readline())
    assert not wrong, wrong
    return found


def carried(found: Any) -> Any:
    """Return a value as it would come from elsewhere."""
    return json.loads(json.dumps(found))


def _started() -> subprocess.Popen[str]:
    seed = "2" if os.environ.get("PYTHONHASHSEED") != "2" else "3"
    return subprocess.Popen(
        [sys.executable, "-c", "from tests.elsewhere import serve; serve()"],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "2"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def serve() -> None:
    """Answer until nobody asks; what functions print is no answer."""
    import torch

    torch.set_num_threads(2)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        place, given = json.loads(line)
        found, wrong = None, ""
        try:
            module, _, name = place.partition(":")
            found = getattr(importlib.import_module(module), name)(*given)
        except BaseException:
            wrong = traceback.format_exc()
        answers.write(json.dumps([found, wrong]) + "\n")
        answers.flush()


def seed() -> list[Any]:
    """Return what is other in each process: the hash of a text, and torch's threads."""
    import torch

    return [hash("a"), torch.get_num_threads()]
