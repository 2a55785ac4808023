"""How much memory a process may still take, and when a checkpoint is too large for it."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

SHARE = 3
"""An ordinary compilation holds the original, the compiled model and one copy on the way."""

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def too_large(nbytes: int) -> bool:
    """Whether a checkpoint should be streamed: `SHARE` times its size is not available."""
    return SHARE * nbytes > available()


def available() -> int:
    """Return the bytes that this process may take: of the machine, its group and its limits."""
    found = [sys.maxsize]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(li for li in lines if li.startswith("MemAvail")).split()[1]))
    for file in _CGROUPS:
        with suppress(OSError, ValueError):
            found.append(int(Path(file).read_text()))
    with suppress(ImportError):
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            soft = resource.getrlimit(kind)[0]
            found += [soft] if soft != resource.RLIM_INFINITY else []
    return min(found)


def peak_resident() -> int:
    """Return the most bytes that were resident at once in this process; 0 where unknown."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
