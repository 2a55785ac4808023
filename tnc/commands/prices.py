"""What a calibration found, in words: peaks, dispatch, bandwidths, copies, and how well it fits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tnc.kernels.price import Backend, Machine

KIB, MIB = 1 << 10, 1 << 20
STREAMS = (("L2", 512 * KIB), ("L3", 8 * MIB), ("memory", 256 * MIB))
"""Working sets that fit the caches of common processors, and one that fits none."""


def price_rows(dtype: str, threads: int | None, device: str) -> tuple[tuple[str, str], ...]:
    """Return name and value of what the current table says, and of its test on random products."""
    from tnc.kernels.machine import current

    machine = current(dtype, threads, device)
    return (*_backends(machine), *_memory(machine), *_fits(machine))


def _backends(machine: Machine) -> Iterator[tuple[str, str]]:
    for name, library in machine.libraries.items():
        if library.refused:
            yield name, f"refused: {library.refused}"
            continue
        yield name, _library(library)
        yield (
            f"{name}, vector times matrix",
            ", ".join(
                f"{size}²: {_micro(machine.gemm(name, 1, 1, size, size))}" for size in (256, 1024)
            ),
        )


def _library(library: Backend) -> str:
    calls = ", ".join(
        f"{kind} {_micro(products.overhead)}" for kind, products in library.products.items()
    )
    error = f"relative error {library.error:.1e}"
    return f"{library.peak / 1e9:.0f} GFLOP/s, {error}, any call: {calls}"


def _memory(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "a view or slice", _micro(machine.statement)
    for name, size in STREAMS:
        yield f"bandwidth, {name} ({_size(size)})", f"{machine.bandwidth(size) / 1e9:.0f} GB/s"
    for run in (machine.copies.grid.axes[1][0], 64, MIB):
        yield f"copy of 1 MiB, runs of {_size(run)}", _micro(machine.copy(MIB, run))
    yield "fresh pages of 64 MiB", _micro(machine.fresh(64 * MIB))


def _fits(machine: Machine) -> Iterator[tuple[str, str]]:
    from tnc.kernels.predictions import fits

    for fit in fits(machine):
        yield (
            f"100 random {fit.kind}, {fit.backend}",
            f"price over time {fit.bias:.2f}; off by {fit.middle:.2f} (median), "
            f"{fit.most:.2f} (90 %)",
        )


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} µs"


def _size(size: int) -> str:
    for unit, bytes in (("MiB", MIB), ("KiB", KIB)):
        if size >= bytes:
            return f"{size // bytes} {unit}"
    return f"{size} B"
