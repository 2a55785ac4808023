"""Runs to report on: strategies on toys, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tests.unit.explore.toys  # noqa: F401 registers the evaluator
import tnc


def made(folder: Path, **more: Any) -> Path:
    """Make a run of a few seconds, whose candidates without an error are told as failed."""
    parts: dict[str, Any] = {
        "space": {"bonds": "ring", "rank": 3, "ratio": 0.9},
        "strategy": {"tnale": {"prune": False}},
        "evaluator": {"toy": {"divide": "0-1:3"}},
        "engine": "serial",
        "limits": {"evaluations": 40},
        "out": folder,
    } | more
    target = {"ring": [3, 3, 3, 3], "ranks": [2, 2, 2, 2], "seed": 3}
    tnc.search(target, **parts)
    return folder
