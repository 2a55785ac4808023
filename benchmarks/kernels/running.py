"""Run all cells of a benchmark, printing each as it is done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch

from benchmarks.kernels import judging
from benchmarks.kernels.cells import Cell, cells
from benchmarks.kernels.limits import EDGE, Limits
from benchmarks.kernels.measuring import Row, Settings, measure
from benchmarks.kernels.timing import PRECISION
from benchmarks.outcome import Arguments, Outcome, Table, table
from tnc.kernels.applied import tuning

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""Large buffers are kept, not mapped anew at each call: the same for all sides."""


def compare(arguments: Arguments, train: bool) -> Outcome:
    """Measure the chosen cells and hold them to the goals."""
    settings = Settings(train, arguments.threads, arguments.compiled)
    with tuning(arguments.tune):
        rows = measured(cells(arguments.quick, arguments.only), settings)
    goals = judging.held(rows, train)
    tables = (judging.every(rows), judging.means(rows), judging.worst(goals), setting(rows))
    said = [[row.cell.name, text] for row in rows for text in row.said]
    tables += (table(("cell", "said"), said),) if said else ()
    return Outcome(tables, tuple(goal.result() for goal in goals), figures(rows, arguments))


def measured(chosen: Sequence[Cell], settings: Settings) -> list[Row]:
    """Measure cells one by one."""
    torch.set_num_threads(settings.threads)
    limits, rows = Limits(), []
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
    lines = [
        ["malloc keeps large buffers, all sides alike", "yes" if kept else "no, it is the default"],
        ["threads", torch.get_num_threads()],
        ["clock", "process CPU time" if torch.get_num_threads() == 1 else "wall time"],
    ]
    if hasattr(os, "getloadavg"):
        lines.append(["load average at the end", f"{os.getloadavg()[0]:.1f}"])
    for backend in PRECISION:
        best = min(row.seconds[f"peak {backend}"] for row in rows)
        lines.append([f"peak {backend}, GFLOP/s", f"{2e-9 * EDGE**3 / best:.0f}"])
    for row in (min(rows, key=lambda r: r.cell.bytes), max(rows, key=lambda r: r.cell.bytes)):
        speed = row.cell.bytes / row.seconds["copy"] * 1e-9
        lines.append([f"copy of {row.cell.bytes / 2**20:.2f} MiB, GB/s", f"{speed:.0f}"])
    return table(("setting", ""), lines)


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
                **{key: value for key, value in asdict(row).items() if key != "cell"},
            }
            for row in rows
        ],
    }
