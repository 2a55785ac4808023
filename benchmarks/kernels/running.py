"""Run all cells of a benchmark, printing each as it is done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import cast

import torch

from benchmarks.kernels import judging
from benchmarks.kernels.cells import Cell, cells
from benchmarks.kernels.limits import Limits, edge
from benchmarks.kernels.measuring import Row, Settings, measure
from benchmarks.kernels.place import Place, places
from benchmarks.outcome import Arguments, Goal, Outcome, Table, table
from tnc.kernels.applied import tuning
from tnc.kernels.device import CPU, TF32, precision
from tnc.kernels.machine import state

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""Large buffers are kept, not mapped anew at each call: the same for all sides."""

LEFT_OUT = ("cell", "place")
"""Of a row's figures, what is said of all rows at once."""


def compare(arguments: Arguments, train: bool) -> Outcome:
    """Measure the chosen cells and hold them to the goals; on CUDA in every dtype that is asked."""
    tables: list[Table] = []
    goals: list[Goal] = []
    found: dict[str, object] = {}
    for place in places(arguments.device, arguments.dtype):
        settings = Settings(train, arguments.threads, arguments.compiled, place=place)
        with tuning(arguments.tune), place.held():
            rows = measured(cells(arguments.quick, arguments.only), settings)
        held = judging.held(rows, train)
        tables += [judging.every(rows), judging.means(rows), judging.worst(held), setting(rows)]
        said = [[row.cell.name, text] for row in rows for text in row.said]
        tables += [table(("cell", "said"), said)] if said else []
        goals += [_named(goal.result(), place) for goal in held]
        found[place.kind] = figures(rows, arguments)
    whole = found["float32"] if arguments.device == CPU else {"places": found}
    return Outcome(tuple(tables), tuple(goals), cast(dict[str, object], whole))


def _named(goal: Goal, place: Place) -> Goal:
    return goal if place.device == CPU else replace(goal, figure=f"{place.kind}-{goal.figure}")


def measured(chosen: Sequence[Cell], settings: Settings) -> list[Row]:
    """Measure cells one by one."""
    torch.set_num_threads(settings.threads)
    limits, rows = Limits(settings.place), []
    for number, cell in enumerate(chosen, 1):
        started = time.perf_counter()
        row = measure(cell, settings, limits)
        rows.append(row)
        ratios = ", ".join(f"{name} {value:.2f}" for name, value in row.ratios.items())
        spent = time.perf_counter() - started
        line = f"{number}/{len(chosen)} {cell.name}: {1e6 * row.seconds['ours free']:.1f} us"
        print(f"{line}; {ratios} ({spent:.1f} s)", file=sys.stderr, flush=True)
    return rows


def setting(rows: Sequence[Row]) -> Table:
    """Say how it was measured: malloc, clock, peaks."""
    kept = all(os.environ.get(name) == value for name, value in MALLOC.items())
    place = rows[0].place
    if place.device != CPU:
        return _on_device(rows, place)
    lines = [
        ["malloc keeps large buffers, all sides alike", "yes" if kept else "no, it is the default"],
        ["threads", torch.get_num_threads()],
        ["clock", "process CPU time" if torch.get_num_threads() == 1 else "wall time"],
    ]
    if hasattr(os, "getloadavg"):
        lines.append(["load average at the end", f"{os.getloadavg()[0]:.1f}"])
    return table(("setting", ""), [*lines, *_limits(rows, place)])


def _on_device(rows: Sequence[Row], place: Place) -> Table:
    """Say on which device, how float32 is rounded, and whose prices chose the kernels."""
    dtype = str(place.dtype).removeprefix("torch.")
    device = TF32 if place.kind == "tf32" else place.device
    lines = [
        ["device", torch.cuda.get_device_name()],
        ["dtype", dtype],
        *([["products", precision(device, dtype)]] if dtype == "float32" else []),
        ["clock", "events of the device"],
        ["prices", state(dtype, None, device)],
    ]
    return table(("setting", ""), [*lines, *_limits(rows, place)])


def _limits(rows: Sequence[Row], place: Place) -> Iterator[list[object]]:
    for backend in place.backends:
        best = min(row.seconds[f"peak {backend}"] for row in rows)
        yield [f"peak {backend}, GFLOP/s", f"{2e-9 * edge(place) ** 3 / best:.0f}"]
    item = place.dtype.itemsize
    for row in (min(rows, key=lambda r: r.cell.bytes), max(rows, key=lambda r: r.cell.bytes)):
        touched = row.cell.bytes_of(item)
        speed = touched / row.seconds["copy"] * 1e-9
        yield [f"copy of {touched / 2**20:.2f} MiB, GB/s", f"{speed:.0f}"]


def figures(rows: Sequence[Row], arguments: Arguments) -> dict[str, object]:
    """Return all rows as plain data."""
    return {
        "threads": arguments.threads,
        "tune": arguments.tune,
        "only": arguments.only,
        "rows": [
            {
                "cell": row.cell.name,
                "structure": str(row.cell.structure),
                "compression": row.cell.compression,
                "flop_ratio": row.cell.flop_ratio,
                **{
                    key: value for key, value in asdict(row).items() if key not in ("cell", "place")
                },
            }
            for row in rows
        ],
    }
