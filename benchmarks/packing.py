"""Core shapes of one tensor: exact packing beside the paper's integer programs and baselines."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from statistics import median

import numpy as np

from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.decide.packing import Packing, bang_for_buck, pack_exact, pack_program

NAME = "packing"

SHAPES = {
    "cardiac": (256, 256, 14, 20),
    "hyperspectral": (1024, 1344, 33),
    "traffic": (1084, 2033, 96),
    "coil-100": (7200, 128, 128, 3),
}
BUDGETS = (10_000, 40_000, 60_000, 100_000)
DECAYS = (0.5, 1.25)
SEEDS = (0, 1)
REPEATS = 15


@dataclass(frozen=True)
class Row:
    """Hold one case: packed energy as a ratio to the exact one, seconds of each solver."""

    data: str
    budget: int
    decay: float
    seed: int
    ranks: tuple[int, ...]
    exact_seconds: float
    program_seconds: float
    buck_seconds: float
    program_ratio: float
    buck_ratio: float


def problem(sizes: tuple[int, ...], budget: int, decay: float, seed: int) -> Packing:
    """Make power-law spectra: a_n[i] ~ i^(-2 decay s_n) with noise, s_n in 0.7..1.3, sum 1."""
    rng = np.random.default_rng(seed)
    spectra = []
    for size in sizes:
        slope = 2 * decay * rng.uniform(0.7, 1.3)
        energies = np.arange(1.0, size + 1) ** -slope * np.exp(0.1 * rng.standard_normal(size))
        spectra.append(np.sort(energies / energies.sum())[::-1])
    return Packing(tuple(spectra), sizes, budget)


def run(arguments: Arguments) -> Outcome:
    """Compare the solvers on the paper's four shapes; goals: never worse, at most 10 ms."""
    decays, seeds = (DECAYS[1:], SEEDS[:1]) if arguments.quick else (DECAYS, SEEDS)
    budgets = BUDGETS[::3] if arguments.quick else BUDGETS
    rows = [
        _case(data, budget, decay, seed)
        for data, budget, decay, seed in product(SHAPES, budgets, decays, seeds)
    ]
    worst_time = max(1e3 * row.exact_seconds for row in rows)
    best_program = max(row.program_ratio for row in rows)
    speedups = [row.program_seconds / row.exact_seconds for row in rows]
    columns = (
        "data",
        "budget",
        "cases",
        "exact ms",
        "worst ms",
        "b4b ms",
        "program s",
        "program/exact packed",
        "b4b/exact packed",
    )
    printed = table(
        columns, [_summary(data, budget, rows) for data, budget in product(SHAPES, budgets)]
    )
    goals = (
        Goal("worst-exact-over-program-packed", 1 / best_program, 1 - 1e-12, "at least"),
        Goal("worst-exact-milliseconds", worst_time, 10.0),
    )
    figures = {
        "rows": [row.__dict__ for row in rows],
        "median-program-seconds-over-exact": median(speedups),
        "least-program-seconds-over-exact": min(speedups),
        "program-worse-cases": sum(row.program_ratio < 1 - 1e-12 for row in rows),
        "b4b-worse-cases": sum(row.buck_ratio < 1 - 1e-12 for row in rows),
        "cases": len(rows),
    }
    return Outcome((printed,), goals, figures)


def _case(data: str, budget: int, decay: float, seed: int) -> Row:
    case = problem(SHAPES[data], budget, decay, seed)
    seconds = []
    for _ in range(REPEATS):
        fresh = problem(SHAPES[data], budget, decay, seed)
        started = time.perf_counter()
        exact = pack_exact(fresh)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    program = pack_program(case)
    program_seconds = time.perf_counter() - started
    started = time.perf_counter()
    buck = bang_for_buck(case)
    buck_seconds = time.perf_counter() - started
    return Row(
        data,
        budget,
        decay,
        seed,
        exact.ranks,
        median(seconds),
        program_seconds,
        buck_seconds,
        program.packed / exact.packed,
        buck.packed / exact.packed,
    )


def _summary(data: str, budget: int, rows: list[Row]) -> tuple[object, ...]:
    own = [row for row in rows if (row.data, row.budget) == (data, budget)]
    return (
        data,
        budget,
        len(own),
        1e3 * median(row.exact_seconds for row in own),
        1e3 * max(row.exact_seconds for row in own),
        1e3 * median(row.buck_seconds for row in own),
        median(row.program_seconds for row in own),
        f"{min(row.program_ratio for row in own):.6f}..{max(row.program_ratio for row in own):.6f}",
        f"{min(row.buck_ratio for row in own):.6f}..{max(row.buck_ratio for row in own):.6f}",
    )
