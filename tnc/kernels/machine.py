"""What operations cost on one machine, in one dtype, on a number of threads.

A table is measured once (`tnc doctor --calibrate`) and kept in the user's cache; a machine without
one uses the table shipped with the package, which says less about it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from math import exp, log, prod
from pathlib import Path
from typing import Any

from tnc.errors import KernelError
from tnc.files import write_text
from tnc.kernels.grid import Grid, filled

VERSION = 1
GENERIC = Path(__file__).with_name("generic.json")
COPYING = ("onednn",)
"""Backends that copy a matrix that is one for the whole batch once for each of it."""
VECTOR = 16
BLOCK = 48
"""Columns that libraries take together, and a number of them after which one more is ragged."""
COLUMNS = BLOCK + VECTOR
"""The numbers of columns that are measured one by one."""
KINDS = ("mm", "bmm", "shared")
"""Products of two matrices; of two batches; of one matrix with each of a batch."""
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
NEGLIGIBLE = 0.02
"""The smallest time beyond the dispatch that counts, as a part of the dispatch."""
FORK = 5e-6
"""Seconds to hand work to other threads and wait for them, in estimates."""


@dataclass(frozen=True)
class Products:
    """Seconds of one kind of product: those of any call, and beyond them those of its size.

    A library may leave small products to another one: up to `below` multiply-adds a call costs
    `small`. `ragged` corrects the grid for 0 to 64 columns, as the logarithm of a factor.
    """

    overhead: float
    grid: Grid
    ragged: tuple[float, ...]
    small: float
    below: int
    _offs: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def seconds(self, sizes: tuple[int, ...]) -> float:
        """Return the seconds at (m, n, k) or (batch, m, n, k)."""
        work = prod(sizes)
        call = self.overhead if work > self.below else self.small
        if not work:
            return call
        m, n, k = sizes[-3:]
        found = self.grid.log_at(sizes)
        if m > 1 and k > 1:
            off = self._offs.get(n)
            if off is None:
                off = self._offs[n] = self._off(n)
            if off:
                found += off * _weight(m) * _weight(k)
        return call + exp(found)

    def _off(self, n: int) -> float:
        """Return the correction at n columns; of many, their last ones cost as they do at 48."""
        if n < len(self.ragged):
            return self.ragged[n]
        over = n % VECTOR
        if not over:
            return 0.0
        whole = n - over
        last = (BLOCK + over) * exp(self.ragged[BLOCK + over]) - BLOCK
        return log((whole + max(0.0, last)) / n)


@cache
def _weight(size: int) -> float:
    """Return how much ragged columns matter in a product with so many rows or terms."""
    return min(1.0, log(size) / log(VECTOR))


@dataclass(frozen=True)
class Copies:
    """Seconds of copies in another order: of any call, and beyond them by bytes and inner run."""

    overhead: float
    grid: Grid


@dataclass(frozen=True)
class Backend:
    """One library: the worst relative error probed, why it is refused ('' if not), its times.

    `peak` is its best measured FLOP/s, multiply-adds counted as two.
    """

    error: float
    refused: str
    peak: float
    products: Mapping[str, Products]


@dataclass(frozen=True, eq=False)
class Machine:
    """Prices in seconds, dispatch from Python included; sizes in items, but `bytes` where named."""

    key: str
    dtype: str
    threads: int
    made: str
    """When it was measured; empty for the table that the package ships."""
    statement: float
    """Seconds of one line of emitted Python: a view, a slice."""
    backends: tuple[str, ...]
    libraries: Mapping[str, Backend]
    copies: Copies
    """Axes: bytes, bytes of the contiguous inner run."""
    faults: Grid
    """Seconds that a fresh buffer of so many bytes costs more than one that was used before."""
    streams: Grid
    """Seconds per byte, read and written, of streaming over a working set of so many bytes."""
    _gemms: dict[tuple[object, ...], float] = field(default_factory=dict, init=False, repr=False)

    @property
    def peak(self) -> dict[str, float]:
        """The best measured FLOP/s of every backend that is trusted."""
        return {name: self.libraries[name].peak for name in self.backends}

    def gemm(
        self, backend: str, batch: int, m: int, n: int, k: int, *, shared: bool = False
    ) -> float:
        """Return the seconds of `[batch, m, k] @ [batch, k, n]`, with operands in cache as fits.

        One matrix is `torch.mm`, more are `torch.bmm`; `shared` says that the left matrix is one,
        expanded over the batch. Page faults of a large fresh result come on top: `fresh`.
        """
        asked = (backend, batch, m, n, k, shared)
        found = self._gemms.get(asked)
        if found is None:
            found = self._gemms[asked] = self._gemm(backend, batch, (m, n, k), shared)
        return found

    def _gemm(self, backend: str, batch: int, sizes: tuple[int, int, int], shared: bool) -> float:
        library = self.libraries.get(backend)
        if library is None or not library.products:
            raise KernelError(
                f"no times of the backend {backend!r}", hint=f"one of {', '.join(self.backends)}"
            )
        asked: tuple[int, ...] = sizes if batch == 1 else (batch, *sizes)
        kind = "mm" if batch == 1 else "shared" if shared else "bmm"
        seconds = library.products[kind].seconds(asked)
        if kind == "shared" and backend in COPYING:
            seconds += self.fresh(batch * sizes[0] * sizes[2] * ITEM_BYTES[self.dtype])
        return seconds

    def copy(self, bytes: int, run: int) -> float:
        """Return the seconds to copy `bytes` in another order of dims, into a buffer in use.

        `run` counts the bytes that stay contiguous; all of them for a plain copy, one item where
        the order of all dims is reversed.
        """
        if bytes <= 0:
            return self.copies.overhead
        runs = self.copies.grid.axes[1]
        inner = max(runs[0], min(run, bytes, runs[-1]))
        return self.copies.overhead + self.copies.grid.at((bytes, inner))

    def fresh(self, bytes: int) -> float:
        """Return what a result in a fresh buffer costs more than one in a buffer used before.

        Large buffers (32 MiB and more in glibc) go back to the system when they are freed, and
        each of their pages costs a fault when it is first written.
        """
        return self.faults.at((bytes,)) if bytes > 0 else 0.0

    def bandwidth(self, working_set: int) -> float:
        """Return the bytes per second, read and written, of streaming over a working set."""
        sizes = self.streams.axes[0]
        return 1.0 / self.streams.at((max(sizes[0], min(working_set, sizes[-1])),))


def current(dtype: str = "float32", threads: int | None = None) -> Machine:
    """Return the calibrated table of this machine where there is one, else the shipped one.

    `threads` are torch's unless given. A file that cannot be read is a warning, and the shipped
    table serves. Raises KernelError for a dtype without prices.
    """
    if dtype not in ITEM_BYTES:
        raise KernelError(
            f"no prices for the dtype {dtype!r}", hint=f"one of {', '.join(sorted(ITEM_BYTES))}"
        )
    return _load(_folder(), dtype, threads or torch_threads())


@cache
def _load(folder: str, dtype: str, threads: int) -> Machine:
    file = _file(folder, dtype, threads)
    try:
        found = from_data(json.loads(file.read_text(encoding="utf-8")))
        if found.key == fingerprint(dtype, threads):
            return found
        raise ValueError(f"it is of {found.key}")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        warnings.warn(
            f"the calibration of this machine cannot be read ({type(error).__name__}: {error}), "
            f"so kernels are chosen by the prices of another machine\n  at: {file}\n"
            "  try: tnc doctor --calibrate, or remove the file",
            stacklevel=3,
        )
    return generic(dtype, threads)


def state(dtype: str = "float32", threads: int | None = None) -> str:
    """Return when this machine was calibrated, or that it was not, for people."""
    machine = current(dtype, threads)
    if machine.made:
        return f"{machine.made} on {machine.key}"
    found = "not readable" if path(dtype, threads).exists() else "not calibrated"
    return f"{found}: prices of another machine ({machine.key}); run tnc doctor --calibrate"


def forget() -> None:
    """Drop the tables held in this process, so that new files are seen."""
    _load.cache_clear()


def generic(dtype: str, threads: int) -> Machine:
    """Return the shipped table of a dtype: one thread measured, more estimated.

    Backends that a probe on this machine refuses are not among its `backends`, and one that only
    this machine has is not either.
    """
    from tnc.kernels.backend import available_backends

    machine = from_data(shipped(dtype))
    libraries = {name: _shared_out(each, threads) for name, each in machine.libraries.items()}
    trusted = tuple(name for name in available_backends(dtype) if libraries[name].products)
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


def path(dtype: str = "float32", threads: int | None = None) -> Path:
    """Return where this machine's table of a dtype and a number of threads is kept."""
    return _file(_folder(), dtype, threads or torch_threads())


def _folder() -> str:
    own = os.environ.get("TNC_CACHE")
    return own or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tnc")


def _file(folder: str, dtype: str, threads: int) -> Path:
    return Path(folder).expanduser() / f"machine-{fingerprint(dtype, threads)}.json"


def store(data: Mapping[str, Any], file: Path) -> None:
    """Write a table in one step, and let this process see it."""
    write_text(file, json.dumps(data, separators=(",", ":")) + "\n")
    forget()


@cache
def fingerprint(dtype: str, threads: int) -> str:
    """Return what a table depends on: processor, torch, threads and dtype, fit for a file name."""
    words = (_processor(), f"torch-{_torch_version()}", f"{threads}t", dtype)
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


def from_data(data: Mapping[str, Any]) -> Machine:
    """Return the table of plain data as `calibrate` makes it; ValueError where it is not one."""
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']!r} of the table, {VERSION} is read")
    if data["dtype"] not in ITEM_BYTES:
        raise ValueError(f"dtype {data['dtype']!r}")
    libraries = {name: _library(each) for name, each in data["backends"].items()}
    return Machine(
        key=str(data["key"]),
        dtype=data["dtype"],
        threads=int(data["threads"]),
        made=str(data["made"]),
        statement=_positive(data["statement"]),
        backends=tuple(name for name, each in libraries.items() if not each.refused),
        libraries=libraries,
        copies=_copies(data["copy"]),
        faults=_grid(data["fresh"], _positive),
        streams=_grid(data["bandwidth"], lambda rate: 1.0 / _positive(rate)),
    )


def _library(data: Mapping[str, Any]) -> Backend:
    if data["refused"]:
        return Backend(float(data["error"] or "nan"), str(data["refused"]), 0.0, {})
    products = {kind: _products(data[kind]) for kind in KINDS}
    return Backend(float(data["error"]), "", _positive(data["peak"]), products)


def _products(data: Mapping[str, Any]) -> Products:
    overhead, small, below = _positive(data["overhead"]), _positive(data["small"]), data["below"]
    axes = tuple(tuple(int(size) for size in axis) for axis in data["axes"])
    grid = filled(
        axes,
        [
            None if whole is None else _net(whole, overhead if prod(sizes) > below else small)
            for sizes, whole in zip(product(*axes), data["values"], strict=True)
        ],
    )
    columns = [_net(whole, overhead) for whole in data["columns"]]
    if len(columns) != COLUMNS:
        raise ValueError(f"times of {len(columns)} numbers of columns, not {COLUMNS}")
    return Products(overhead, grid, _ragged(axes[-2], columns), small, int(below))


def _copies(data: Mapping[str, Any]) -> Copies:
    overhead = _positive(data["overhead"])
    return Copies(overhead, _grid(data, lambda whole: _net(whole, overhead)))


def _net(whole: float, overhead: float) -> float:
    return max(_positive(whole) - overhead, NEGLIGIBLE * overhead)


def _ragged(axis: tuple[int, ...], columns: list[float]) -> tuple[float, ...]:
    """Return by which factor (its logarithm) columns differ from what is read between `axis`."""
    points = tuple(size for size in axis if size <= len(columns))
    straight = Grid((points,), tuple(columns[size - 1] for size in points))
    return (0.0, *(log(each / straight.at((n + 1,))) for n, each in enumerate(columns)))


def _grid(data: Mapping[str, Any], price: Callable[[float], float]) -> Grid:
    axes = tuple(tuple(int(size) for size in axis) for axis in data["axes"])
    return filled(axes, [None if each is None else price(each) for each in data["values"]])


def _positive(value: float) -> float:
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{value!r} is no time or rate")
    return float(value)
