"""The prices of one machine: seconds of operations, from a table of plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from math import exp, log, prod
from typing import Any

from tnc.errors import KernelError
from tnc.kernels.grid import Grid, filled

VERSION = 2
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
    """Seconds of copies in another order: of any call, and beyond them by bytes and inner run.

    `turns` are those of a matrix copied to its transpose, by bytes and rows or columns, the fewer.
    """

    overhead: float
    grid: Grid
    turns: Grid


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
    libraries: dict[str, Backend]
    copies: Copies
    """Axes: bytes, bytes of the contiguous inner run."""
    faults: Grid
    """Seconds that a fresh buffer of so many bytes costs more than one that was used before."""
    streams: Grid
    """Seconds per byte, read and written, of streaming over a working set of so many bytes."""
    device: str = "cpu"
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

    def turn(self, bytes: int, short: int) -> float:
        """Return the seconds to copy a matrix of `bytes` to its transpose, into a buffer in use.

        `short` is its number of rows or of columns, whichever is less.
        """
        if bytes <= 0:
            return self.copies.overhead
        shorts = self.copies.turns.axes[1]
        inner = max(shorts[0], min(short, shorts[-1]))
        return self.copies.overhead + self.copies.turns.at((bytes, inner))

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
        copies=copies_of(data["copy"], data["turn"]),
        faults=_grid(data["fresh"], _positive),
        streams=_grid(data["bandwidth"], lambda rate: 1.0 / _positive(rate)),
        device=str(data.get("device", "cpu")),
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


def copies_of(data: Mapping[str, Any], turns: Mapping[str, Any]) -> Copies:
    """Return the prices of copies from plain data; ValueError where it is not that."""
    overhead = _positive(data["overhead"])
    grid, turned = (_grid(each, lambda whole: _net(whole, overhead)) for each in (data, turns))
    return Copies(overhead, grid, turned)


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
