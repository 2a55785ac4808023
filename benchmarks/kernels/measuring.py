"""Measure one cell: all contenders right, then timed in turn; what remains is a row of ratios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

from benchmarks.kernels import sides
from benchmarks.kernels.cells import Cell
from benchmarks.kernels.limits import Limits, roofline
from benchmarks.kernels.place import Place
from benchmarks.kernels.sides import Contender, Numbers
from benchmarks.kernels.timing import (
    Side,
    Times,
    interleaved,
    library,
    median_ratio,
    probe,
    typical,
)
from tnc.kernels.turns import clock

IMPLEMENTATIONS = ("factorized", "reconstructed")
NEAR = 1.3
"""tensorly-torch's slower implementation is timed too where a probe finds it so near."""
TRAINING = 3
"""FLOPs of forward and all gradients by those of the forward."""


@dataclass(frozen=True)
class Settings:
    """Hold how cells are measured: with gradients or not, on how many threads, and against whom.

    `compiled` lets torch.compile of the einsum take part, `kept` versions of the layer that keep
    all intermediates: its own, and plain einsums; without `rivals` nobody else does.
    """

    train: bool
    threads: int = 1
    compiled: bool = False
    kept: bool = False
    rivals: bool = True
    place: Place = field(default_factory=Place)


@dataclass(frozen=True)
class Row:
    """Hold one cell: seconds by side, ratios by name, and what is to be said.

    Ratios are a rival's seconds by ours, `RIVAL LIBRARY` with both sides on one library and
    `RIVAL shipped` with ours as it chooses and the rival at torch's default; larger is better. Of
    `roof`, ours by the roofline, smaller is better.
    """

    cell: Cell
    seconds: Mapping[str, float]
    ratios: Mapping[str, float]
    said: tuple[str, ...] = ()
    place: Place = field(default_factory=Place)


def measure(cell: Cell, settings: Settings, limits: Limits) -> Row:
    """Check and time all contenders of a cell. Raises SystemExit for a wrong result."""
    train, place = settings.train, settings.place
    now = clock(settings.threads, place.device)
    with torch.set_grad_enabled(train):
        numbers = sides.numbers(cell, train, place)
        said: list[str] = []
        entries = list(_ours(cell, numbers, settings))
        if settings.rivals:
            entries += _rivals(cell, numbers, train, said)
        if settings.compiled:
            entries += _compiled(cell, numbers, train, said)
        entries += limits.sides(cell.bytes_of(place.dtype.itemsize))
        guesses = {side.name: probe(side, now) for side in entries}
        kept = [side for side in entries if not _far(side.name, guesses)]
        times = interleaved(kept, [guesses[side.name] for side in kept], now)
    seconds = {side.name: typical(times, side.name) for side in kept}
    ratios = dict(_ratios(cell, place, times, seconds, train))
    return Row(cell, seconds, ratios, tuple(said), place)


def _ours(cell: Cell, numbers: Numbers, settings: Settings) -> Iterator[Side]:
    train, backends = settings.train, settings.place.backends
    yield _checked("ours free", backends[0], sides.ours(cell, numbers), numbers, train)
    for backend in backends if len(backends) > 1 else ():
        layer = sides.ours(cell, numbers)
        yield _checked(f"ours {backend}", backend, layer, numbers, train, held=True)
        if settings.kept:
            untiled = sides.kept(cell, numbers)
            yield _checked(f"kept {backend}", backend, untiled, numbers, train, held=True)
            layer = sides.ours(cell, numbers)
            with sides.keeping():
                yield _checked(f"keeping {backend}", backend, layer, numbers, train, held=True)


def _rivals(cell: Cell, numbers: Numbers, train: bool, said: list[str]) -> Iterator[Side]:
    absent = find_spec("tltorch") is None
    if absent:
        said.append("tensorly-torch takes no part: it is not installed")
    for backend in numbers.place.backends:
        for implementation in () if absent else IMPLEMENTATIONS:
            rival = sides.tensorly_torch(cell, numbers, implementation)
            if rival is not None:
                name = f"tensorly {implementation} {backend}"
                yield _checked(name, backend, rival, numbers, train)
        rival = sides.einsum(cell, numbers)
        yield _checked(f"einsum {backend}", backend, rival, numbers, train)
        yield _checked(f"dense {backend}", backend, sides.dense(numbers), numbers, train)


def _compiled(cell: Cell, numbers: Numbers, train: bool, said: list[str]) -> Iterator[Side]:
    torch._dynamo.reset()
    for backend in numbers.place.backends:
        rival = sides.einsum(cell, numbers, compiled=True)
        try:
            yield _checked(f"compiled {backend}", backend, rival, numbers, train)
        except Exception as error:  # whatever the compiler raises is an outcome here
            said.append(f"torch.compile fails, {type(error).__name__}: {str(error)[:80]}")


def _checked(
    name: str,
    backend: str,
    contender: Contender,
    numbers: Numbers,
    train: bool,
    held: bool = False,
) -> Side:
    with library(backend, held):
        contender.check(name, numbers, train)
    return Side(name, contender.call(numbers, train), backend, held)


def _far(name: str, guesses: Mapping[str, float]) -> bool:
    """Say whether a side is the clearly slower implementation of tensorly-torch."""
    if not name.startswith("tensorly"):
        return False
    _, _, backend = name.split()
    best = min(guesses[f"tensorly {one} {backend}"] for one in IMPLEMENTATIONS)
    return guesses[name] > NEAR * best


def best_tensorly(seconds: Mapping[str, float], backend: str) -> str | None:
    """Return the name of tensorly-torch's fastest side on a library; None where it has none."""
    names = [n for n in seconds if n.startswith("tensorly") and n.endswith(backend)]
    return min(names, key=lambda name: seconds[name]) if names else None


def _ratios(
    cell: Cell, place: Place, times: Times, seconds: Mapping[str, float], train: bool
) -> Iterator[tuple[str, float]]:
    for backend in place.backends:
        own = f"ours {backend}" if f"ours {backend}" in seconds else "ours free"
        rivals = {
            kind: f"{kind} {backend}" for kind in ("einsum", "compiled", "dense", "kept", "keeping")
        }
        rivals["tensorly"] = best_tensorly(seconds, backend) or ""
        for kind, rival in rivals.items():
            if rival not in seconds:
                continue
            yield f"{kind} {backend}", median_ratio(times, rival, own)
            if backend == "mkl":
                yield f"{kind} shipped", median_ratio(times, rival, "ours free")
    flops = cell.flops * (TRAINING if train else 1)
    peak = min(seconds[f"peak {backend}"] for backend in place.backends)
    yield "roof", seconds["ours free"] / roofline(flops, place, peak, seconds["copy"])
