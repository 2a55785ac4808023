"""What the loops cost here: measured once, when they are compiled, and kept beside the prices.

The loops are compiled by `tnc doctor --calibrate`, or when kernels are first chosen by timing, and
never inside a forward that nobody asked to wait: the cost model considers them only where their
rates are known.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tnc.files import write_text
from tnc.kernels.machine import fingerprint, path
from tnc.kernels.turns import Run, block, clock

DTYPES = ("float32", "float64")
SOURCES = ("run.py", "tiles.py", "moves.py", "blocks.py")
READINGS = 25
EDGE = 96


@dataclass(frozen=True)
class Rates:
    """Seconds of a call with its result, and of what `nest.cycles` counts as a cycle."""

    call: float
    cycle: float


@cache
def known(dtype: str) -> Rates | None:
    """Return the rates measured on this machine; None where the loops are not compiled."""
    if dtype not in DTYPES or not stamp():
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads(_file(dtype).read_text("utf-8"))
        if data.pop("stamp") == stamp():
            return Rates(**data)
    return None


def made(dtype: str) -> Rates | None:
    """Return the rates, compiling the loops (about 10 s) and measuring them where they are not
    known; None where numba is missing or cannot compile here."""
    found = known(dtype)
    if found is not None or refused(dtype):
        return found
    found = _measured(dtype)
    file = _file(dtype)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"stamp": stamp(), **asdict(found)}) + "\n")
    known.cache_clear()
    return found


def refused(dtype: str) -> str:
    """Say why there are no loops of a dtype here; empty where there can be."""
    if dtype not in DTYPES:
        return f"no loops for {dtype}"
    if not stamp():
        return "numba is not installed"
    return _broken()


@cache
def _broken() -> str:
    try:
        import tnc.kernels.loops.run  # noqa: F401
    except Exception as error:  # whatever a compiler that does not fit its surroundings raises
        return f"numba cannot compile here ({type(error).__name__}: {error})"
    return ""


@cache
def stamp() -> str:
    """Return what compiled loops depend on beside the processor; empty without numba."""
    if find_spec("numba") is None:
        return ""
    with suppress(PackageNotFoundError, OSError):
        files = [Path(__file__).with_name(name) for name in SOURCES]
        text = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        return sha256(f"{version('numba')} {text}".encode()).hexdigest()[:16]
    return ""


def state(dtype: str) -> str:
    """Say for people whether loops are compiled, or why not."""
    if dtype not in DTYPES or not stamp():
        return refused(dtype)
    found = known(dtype)
    if found is None:
        return "not compiled: run tnc doctor --calibrate"
    return f"compiled, {1e6 * found.call:.1f} us a call"


def _file(dtype: str) -> Path:
    return path(dtype, 1).parent / f"loops-{fingerprint(dtype, 1)}.json"


def _measured(dtype: str) -> Rates:
    import torch

    from tnc.kernels.loops.nest import Loop, Nest, Nests, cycles
    from tnc.kernels.loops.table import bound

    kind: torch.dtype = getattr(torch, dtype)

    def seconds(m: int, n: int, k: int) -> tuple[float, float]:
        nest = Nest("tile", "y", "V", "x", Loop(), Loop(),
                    Loop(m, n, 0, k), Loop(n, 1, 1, 0), Loop(k, 0, n, 1))  # fmt: skip
        steps = Nests((nest,), ())
        call = bound(lambda _: steps, {"V": torch.rand(k, n, dtype=kind)}, None, (m, k, n))
        assert call is not None
        x = torch.rand(m, k, dtype=kind)
        return _least(lambda: call(x)), cycles(nest, lanes(dtype))

    call, few = seconds(1, 16, 8)
    whole, many = seconds(EDGE, EDGE, EDGE)
    cycle = max(1e-12, (whole - call) / (many - few))
    return Rates(max(1e-8, call - few * cycle), cycle)


def _least(run: Run) -> float:
    run()
    return min(block(run, 100, clock(1)) for _ in range(READINGS))


def lanes(dtype: str) -> int:
    """Return the lanes of a vector, of the widest processors."""
    return 16 if dtype == "float32" else 8
