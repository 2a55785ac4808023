"""What measured times depend on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def environment() -> tuple[tuple[str, str], ...]:
    """Return what measured times depend on, and the commit of tnc where it runs from a checkout."""
    import torch

    from tnc import __version__

    found = (
        ("tnc", __version__),
        ("commit", commit()),
        ("torch", str(torch.__version__)),
        ("python", platform.python_version()),
        ("system", platform.system()),
        ("machine", platform.machine()),
        ("processor", processor()),
        ("threads", str(torch.get_num_threads())),
        ("cores", str(os.cpu_count())),
    )
    return tuple((name, value) for name, value in found if value)


def commit() -> str:
    """Return the commit that tnc runs from, marked `-dirty` with edits; empty when installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = (
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    )
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def processor() -> str:
    """Return the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "")
