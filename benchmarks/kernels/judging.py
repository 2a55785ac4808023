"""Hold rows to the goals, and print them: every cell, what they come to, the worst by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from benchmarks.kernels.cells import TRAINS
from benchmarks.kernels.measuring import Row, best_tensorly
from benchmarks.outcome import Goal, Table, table

BY_BATCH = {1: 5.0, 16: 2.0, 128: 1.5}
TRAINS_AT, TRAINS_GOAL = 1024, 2.5
SHIPPED, SHIPPED_TRAINING = 3.0, 2.5
LARGE = 128
SHARE = {"low-rank": 0.8, "tucker": 0.8, "cp": 0.8, "tensor-train": 0.6, "block-tensor-train": 0.6}
"""The least share of the FLOP ratio that must show against dense, from batch LARGE."""
ROOF = {"low-rank": 1.2, "cp": 1.2, "tucker": 1.4, "tensor-train": 1.7, "block-tensor-train": 2.0}
"""The most times the roofline, from batch LARGE."""
SMALL_ROOF = 2.0
HALF = 2.0
"""The FLOP ratio from which no cell may be slower than dense."""
WORST = 6


@dataclass(frozen=True)
class Held:
    """Hold one goal with the rows that it is about: their figures, and how they are summed up."""

    name: str
    goal: float
    rows: Sequence[Row]
    figure: Callable[[Row], float]
    mean: bool = False
    most: bool = False

    def result(self) -> Goal:
        """Return the geometric mean, or the worst of the rows."""
        values = [self.figure(row) for row in self.rows]
        if self.mean:
            return Goal(f"mean-{self.name}", geometric_mean(values), self.goal, "at least")
        if self.most:
            return Goal(f"most-{self.name}", max(values), self.goal)
        return Goal(f"least-{self.name}", min(values), self.goal, "at least")

    def worst(self) -> list[Row]:
        """Return the worst rows, worst first; those that miss the goal where it is for each."""
        order = sorted(self.rows, key=self.figure, reverse=self.most)
        if self.mean:
            return order[:WORST]
        missed = [r for r in order if (self.figure(r) > self.goal) == self.most]
        return missed[:WORST]


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean; NaN of none."""
    return exp(fmean(map(log, values))) if values else float("nan")


def held(rows: Sequence[Row], train: bool) -> list[Held]:
    """Return the goals that the rows are about, in the order of the rivals."""
    return [goal for goal in _all(rows, train) if goal.rows]


def _all(rows: Sequence[Row], train: bool) -> Iterator[Held]:
    for backend in backends(rows):
        name, against = f"tensorly-same-{backend}", f"tensorly {backend}"
        own = [row for row in rows if against in row.ratios]
        for batch, goal in BY_BATCH.items():
            at = [row for row in own if row.cell.batch == batch]
            yield Held(f"{name}-b{batch}", goal, at, _ratio(against), mean=True)
        trains = [r for r in own if r.cell.batch == TRAINS_AT and r.cell.family in TRAINS]
        yield Held(f"{name}-trains-b{TRAINS_AT}", TRAINS_GOAL, trains, _ratio(against), mean=True)
        yield Held(name, 1.0, own, _ratio(against))
    own, against = [row for row in rows if "tensorly shipped" in row.ratios], "tensorly shipped"
    goal = SHIPPED_TRAINING if train else SHIPPED
    yield Held("tensorly-as-shipped", goal, own, _ratio(against), mean=True)
    yield Held("tensorly-as-shipped", 1.0, own, _ratio(against))
    for backend in backends(rows):
        yield from _dense(rows, backend, train)
    if not train:
        yield from _roof(rows)


def _dense(rows: Sequence[Row], backend: str, train: bool) -> Iterator[Held]:
    against = f"dense {backend}"
    if not train:
        large = [row for row in rows if row.cell.batch >= LARGE]
        for share in sorted(set(SHARE.values()), reverse=True):
            families = [name for name, least in SHARE.items() if least == share]
            name = f"share-of-flop-ratio-{backend}-{'-'.join(families)}"
            own = [row for row in large if row.cell.family in families]
            yield Held(name, share, own, lambda r: r.ratios[against] / r.cell.flop_ratio)
    half = [row for row in rows if row.cell.flop_ratio >= HALF]
    yield Held(f"dense-same-{backend}-half-the-flops", 1.0, half, _ratio(against))


def _roof(rows: Sequence[Row]) -> Iterator[Held]:
    large = [row for row in rows if row.cell.batch >= LARGE]
    for family, most in ROOF.items():
        own = [row for row in large if row.cell.family == family]
        yield Held(f"roofline-{family}-from-b{LARGE}", most, own, _ratio("roof"), most=True)
    small = [row for row in rows if row.cell.batch < LARGE]
    yield Held(f"roofline-below-b{LARGE}", SMALL_ROOF, small, _ratio("roof"), most=True)


def _ratio(name: str) -> Callable[[Row], float]:
    return lambda row: row.ratios[name]


def backends(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the libraries that the rows compare on."""
    return rows[0].place.backends if rows else ()


def every(rows: Sequence[Row]) -> Table:
    """Print one line a cell: microseconds of each side, then the ratios."""
    on, more = backends(rows), len(backends(rows)) > 1
    columns = [
        "cell", "fewer params", "fewer flops", "ours us",
        *(f"on {name}" for name in on if more),
        *(f"{kind} {name}" for kind in ("tensorly", "einsum", "dense") for name in on),
        *(f"x tensorly {name}" for name in on),
        *(["shipped"] if more else []),
        *(f"x {kind} {name}" for kind in ("einsum", "dense") for name in on),
        "x roof",
    ]  # fmt: skip
    return table(tuple(columns), [_line(row) for row in rows])


def _line(row: Row) -> list[object]:
    cell, seconds, ratios, on = row.cell, row.seconds, row.ratios, row.place.backends

    def micro(name: str | None) -> str:
        return "-" if name is None else f"{1e6 * seconds[name]:.1f}"

    def times(name: str) -> str:
        return f"{ratios[name]:.2f}" if name in ratios else "-"

    best = {backend: best_tensorly(seconds, backend) for backend in on}
    rebuilt = {b: "r" if name and "reconstructed" in name else "" for b, name in best.items()}
    held = on if len(on) > 1 else ()
    return [
        cell.name,
        f"{cell.compression:.0f}",
        f"{cell.flop_ratio:.2f}",
        *(micro(f"ours {how}") for how in ("free", *held)),
        *(micro(best[backend]) + rebuilt[backend] for backend in on),
        *(micro(f"{kind} {backend}") for kind in ("einsum", "dense") for backend in on),
        *(times(f"tensorly {how}") for how in (*on, *(["shipped"] if held else []))),
        *(times(f"{kind} {backend}") for kind in ("einsum", "dense") for backend in on),
        times("roof"),
    ]


def means(rows: Sequence[Row]) -> Table:
    """Print geometric means by rival and batch, and of all batches."""
    names = sorted({name for row in rows for name in row.ratios}, reverse=True)
    batches = sorted({row.cell.batch for row in rows})
    lines = []
    for name in names:
        own = [row for row in rows if name in row.ratios]
        columns = [[r.ratios[name] for r in own if r.cell.batch == b] for b in batches]
        values = [f"{geometric_mean(column):.2f}" for column in columns]
        overall = geometric_mean([row.ratios[name] for row in own])
        lines.append([name, *values, f"{overall:.2f}", len(own)])
    return table(("geometric mean", *(f"b={b}" for b in batches), "all", "cells"), lines)


def worst(goals: Sequence[Held]) -> Table:
    """Print by name the worst cells of every goal that is missed."""
    lines = [
        [goal.result().figure, f"{goal.goal:g}", row.cell.name, f"{goal.figure(row):.2f}"]
        for goal in goals
        if not goal.result().met
        for row in goal.worst()
    ]
    return table(("short of", "goal", "worst cells", "figure"), lines)
