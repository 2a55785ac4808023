"""Whose prices hold: this machine's in one dtype on a number of threads, or the shipped ones.

A table is measured once (`tnc doctor --calibrate`) and kept in the user's cache; a machine without
one uses the table shipped with the package, which says less about it. A CUDA device without one is
estimated from a data sheet.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tnc.errors import KernelError
from tnc.files import write_text
from tnc.kernels.cuda_table import estimated
from tnc.kernels.device import CPU, check_device, gpu
from tnc.kernels.grid import Grid
from tnc.kernels.price import ITEM_BYTES, Backend, Machine, from_data

__all__ = ("Machine", "current", "fingerprint", "forget", "generic", "path", "shipped", "state",
           "store", "torch_threads")  # fmt: skip

GENERIC = Path(__file__).with_name("generic.json")
FORK = 5e-6
"""Seconds to hand work to other threads and wait for them, in estimates."""


def current(dtype: str = "float32", threads: int | None = None, device: str = CPU) -> Machine:
    """Return the calibrated table of this machine where there is one, else the shipped one.

    `threads` are torch's unless given; on CUDA they do not count. A file that cannot be read is a
    warning, and the shipped table serves. Raises KernelError for a dtype or device without prices.
    """
    check_device(device)
    if dtype not in ITEM_BYTES:
        raise KernelError(
            f"no prices for the dtype {dtype!r}", hint=f"one of {', '.join(sorted(ITEM_BYTES))}"
        )
    return _load(_folder(), dtype, _threads(threads, device), device)


def _threads(threads: int | None, device: str) -> int:
    return threads or torch_threads() if device == CPU else 1


@cache
def _load(folder: str, dtype: str, threads: int, device: str) -> Machine:
    file = _file(folder, dtype, threads, device)
    try:
        found = from_data(json.loads(file.read_text(encoding="utf-8")))
        if found.key == fingerprint(dtype, threads, device):
            return found
        raise ValueError(f"it is of {found.key}")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        warnings.warn(
            f"the calibration of this machine cannot be read ({type(error).__name__}: {error}), "
            f"so kernels are chosen by the prices of another machine\n  at: {file}\n"
            f"  try: {_remedy(device)}, or remove the file",
            stacklevel=3,
        )
    return generic(dtype, threads, device)


def state(dtype: str = "float32", threads: int | None = None, device: str = CPU) -> str:
    """Return when this machine was calibrated, or that it was not, for people."""
    machine = current(dtype, threads, device)
    if machine.made:
        return f"{machine.made} on {machine.key}"
    found = "not readable" if path(dtype, threads, device).exists() else "not calibrated"
    return f"{found}: prices of another machine ({machine.key}); run {_remedy(device)}"


def _remedy(device: str) -> str:
    return "tnc doctor --calibrate" + ("" if device == CPU else " --device cuda")


def forget() -> None:
    """Drop the tables held in this process, so that new files are seen."""
    _load.cache_clear()


def generic(dtype: str, threads: int, device: str = CPU) -> Machine:
    """Return the shipped table of a dtype: one thread measured, more estimated; CUDA is estimated.

    Backends that a probe on this machine refuses are not among its `backends`; one that is good
    only here has the prices of another.
    """
    if device != CPU:
        return from_data(estimated(dtype, device))
    from tnc.kernels.backend import available_backends

    machine = from_data(shipped(dtype))
    known = {name: each for name, each in machine.libraries.items() if not each.refused}
    other, trusted = next(iter(known.values())), available_backends(dtype)
    libraries = machine.libraries | {
        name: _shared_out(known.get(name, other), threads) for name in trusted
    }
    copies = replace(machine.copies, grid=_spread(machine.copies.grid, threads))
    return replace(
        machine,
        made="",
        threads=threads,
        backends=trusted,
        libraries=libraries,
        copies=copies,
    )


def _shared_out(library: Backend, threads: int) -> Backend:
    products = {
        kind: replace(each, grid=_spread(each.grid, threads))
        for kind, each in library.products.items()
    }
    return replace(library, peak=library.peak * threads, products=products)


def _spread(grid: Grid, threads: int) -> Grid:
    """Return the estimate for more threads: divided work and a fork, where that is less."""
    if threads == 1:
        return grid
    return Grid(grid.axes, tuple(min(each, each / threads + FORK) for each in grid.seconds))


def shipped(dtype: str) -> dict[str, Any]:
    """Return the shipped table of a dtype as plain data."""
    return _tables()[dtype]


@cache
def _tables() -> dict[str, dict[str, Any]]:
    tables = json.loads(GENERIC.read_text(encoding="utf-8"))["tables"]
    return {table["dtype"]: table for table in tables}


def path(dtype: str = "float32", threads: int | None = None, device: str = CPU) -> Path:
    """Return where this machine's table of a dtype and a number of threads is kept."""
    return _file(_folder(), dtype, _threads(threads, device), device)


def _folder() -> str:
    own = os.environ.get("TNC_CACHE")
    return own or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tnc")


def _file(folder: str, dtype: str, threads: int, device: str) -> Path:
    return Path(folder).expanduser() / f"machine-{fingerprint(dtype, threads, device)}.json"


def store(data: Mapping[str, Any], file: Path) -> None:
    """Write a table in one step, and let this process see it."""
    write_text(file, json.dumps(data, separators=(",", ":")) + "\n")
    forget()


@cache
def fingerprint(dtype: str, threads: int, device: str = CPU) -> str:
    """Return what a table depends on: processor, torch, threads and dtype, fit for a file name.

    On CUDA the GPU, torch, dtype, and whether float32 is rounded to tf32.
    """
    torch = f"torch-{_torch_version()}"
    on_cpu = device == CPU
    words = (_processor(), torch, f"{threads}t", dtype) if on_cpu else (gpu(), torch, device, dtype)
    return "-".join(re.sub(r"[^a-z0-9.+]+", "-", word.lower()).strip("-") for word in words)


@cache
def _processor() -> str:
    """Return the processor's name with its family and model, as one name covers several."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    wanted = ("model name", "cpu family", "model", "stepping")
    words = [found[name] for name in wanted if found.get(name)]
    return " ".join(words) or f"{platform.processor()} {platform.machine()}"


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "unknown"


def torch_threads() -> int:
    """Return torch's number of threads; before torch is imported, what it is going to be."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else os.cpu_count() or 1
