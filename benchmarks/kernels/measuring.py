"""Measure one cell: all contenders right, then timed in turn; what remains is a row of ratios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from benchmarks.kernels import sides
from benchmarks.kernels.cells import Cell
from benchmarks.kernels.limits import Limits, roofline
from benchmarks.kernels.sides import Contender, Numbers
from benchmarks.kernels.timing import (
    PRECISION,
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

    `compiled` lets torch.compile of the einsum take part, `kept` the layer's own version that keeps
    all intermediates; without `rivals` nobody else does.
    """

    train: bool
    threads: int = 1
    compiled: bool = False
    kept: bool = False
    rivals: bool = True


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


def measure(cell: Cell, settings: Settings, limits: Limits) -> Row:
    """Check and time all contenders of a cell. Raises SystemExit for a wrong result."""
    train, now = settings.train, clock(settings.threads)
    with torch.set_grad_enabled(train):
        numbers = sides.numbers(cell, train)
        said: list[str] = []
        entries = list(_ours(cell, numbers, settings))
        if settings.rivals:
            entries += _rivals(cell, numbers, train)
        if settings.compiled:
            entries += _compiled(cell, numbers, train, said)
        entries += limits.sides(cell.bytes)
        guesses = {side.name: probe(side, now) for side in entries}
        kept = [side for side in entries if not _far(side.name, guesses)]
        times = interleaved(kept, [guesses[side.name] for side in kept], now)
    seconds = {side.name: typical(times, side.name) for side in kept}
    return Row(cell, seconds, dict(_ratios(cell, times, seconds, train)), tuple(said))


def _ours(cell: Cell, numbers: Numbers, settings: Settings) -> Iterator[Side]:
    train = settings.train
    yield _checked("ours free", "mkl", sides.ours(cell, numbers), numbers, train)
    for backend in PRECISION:
        layer = sides.ours(cell, numbers)
        yield _checked(f"ours {backend}", backend, layer, numbers, train, held=True)
        if settings.kept:
            untiled = sides.kept(cell, numbers)
            yield _checked(f"kept {backend}", backend, untiled, numbers, train, held=True)


def _rivals(cell: Cell, numbers: Numbers, train: bool) -> Iterator[Side]:
    for backend in PRECISION:
        for implementation in IMPLEMENTATIONS:
            rival = sides.tensorly_torch(cell, numbers, implementation)
            if rival is not None:
                name = f"tensorly {implementation} {backend}"
                yield _checked(name, backend, rival, numbers, train)
        rival = sides.einsum(cell, numbers)
        yield _checked(f"einsum {backend}", backend, rival, numbers, train)
        yield _checked(f"dense {backend}", backend, sides.dense(numbers), numbers, train)


def _compiled(cell: Cell, numbers: Numbers, train: bool, said: list[str]) -> Iterator[Side]:
    torch._dynamo.reset()
    for backend in PRECISION:
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
    cell: Cell, times: Times, seconds: Mapping[str, float], train: bool
) -> Iterator[tuple[str, float]]:
    for backend in PRECISION:
        rivals = {kind: f"{kind} {backend}" for kind in ("einsum", "compiled", "dense", "kept")}
        rivals["tensorly"] = best_tensorly(seconds, backend) or ""
        for kind, rival in rivals.items():
            if rival not in seconds:
                continue
            yield f"{kind} {backend}", median_ratio(times, rival, f"ours {backend}")
            if backend == "mkl":
                yield f"{kind} shipped", median_ratio(times, rival, "ours free")
    flops = cell.flops * (TRAINING if train else 1)
    peak = min(seconds[f"peak {backend}"] for backend in PRECISION)
    yield "roof", seconds["ours free"] / roofline(flops, peak, seconds["copy"])
