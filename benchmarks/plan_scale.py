"""The whole model's knapsack at scale: seconds and gap, beside the Lagrangian alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from statistics import median

import numpy as np

from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.decide.allocation import Allocation, Choice, Effort, allocate, minimise_cost

NAME = "plan-scale"

SIZES = ((50, 20), (200, 30), (1000, 50))
SHARES = ((0.4, 0.5), (0.2, 0.2), (0.4, 0.3))
SEEDS = (0, 1, 2)
REPEATS = 3
GAP = 1e-4


@dataclass(frozen=True)
class Row:
    """Hold one instance: seconds and gap of each objective, error relative to the bound."""

    sites: int
    candidates: int
    seed: int
    shares: tuple[float, float]
    solver: str
    sum_seconds: float
    sum_gap: float
    lagrangian_seconds: float
    lagrangian_excess: float
    max_seconds: float
    max_gap: float
    cost_seconds: float
    cost_gap: float


def model(
    sites: int, candidates: int, seed: int, shares: tuple[float, float]
) -> tuple[list[list[Choice]], dict[str, float]]:
    """Make a model: layers of log-normal size and weight, three families of candidates each.

    A candidate keeps a share f of the parameters, its FLOPs follow by the family, and its error
    is weight (1 - f)^2 / (f + 0.05) with noise; the first candidate is dense. Budgets are shares
    of the dense parameters and FLOPs.
    """
    rng = np.random.default_rng(seed)
    built, dense = [], np.zeros(2)
    for _ in range(sites):
        size, weight = rng.lognormal(12, 1.5), rng.lognormal(0, 1)
        whole = np.array([size, size * rng.lognormal(3, 0.8)])
        kept = np.sort(rng.uniform(0.02, 1, candidates - 1))
        family = np.array([1.0, 0.7, 1.6])[rng.integers(0, 3, candidates - 1)]
        noise = np.exp(0.05 * rng.standard_normal((candidates - 1, 2)))
        costs = np.round(np.column_stack((kept, kept * family)) * noise * whole)
        errors = weight * (1 - kept) ** 2 / (kept + 0.05)
        errors = errors * np.exp(0.2 * rng.standard_normal(candidates - 1))
        site = [Choice((float(round(whole[0])), float(round(whole[1]))), 0.0)]
        site += [Choice((float(c[0]), float(c[1])), float(e)) for c, e in zip(costs, errors)]
        built.append(site)
        dense += whole
    return built, {"params": float(shares[0] * dense[0]), "flops": float(shares[1] * dense[1])}


def run(arguments: Arguments) -> Outcome:
    """Solve models of growing size under two budgets; goal: the largest in at most 2 s."""
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    rows = [
        _case(sites, candidates, seed, shares)
        for (sites, candidates), seed, shares in product(SIZES, seeds, SHARES)
    ]
    columns = (
        "sites",
        "candidates",
        "cases",
        "sum s",
        "worst s",
        "worst gap",
        "lagrangian s",
        "its worst excess",
        "max s",
        "worst s",
        "cost s",
        "worst s",
    )
    printed = table(columns, [_summary(size, rows) for size in SIZES])
    large = [row for row in rows if (row.sites, row.candidates) == SIZES[-1]]
    goals = (
        Goal("worst-seconds-1000x50-sum", max(row.sum_seconds for row in large), 2.0),
        Goal("worst-seconds-1000x50-max", max(row.max_seconds for row in large), 2.0),
        Goal("worst-seconds-1000x50-least-cost", max(row.cost_seconds for row in large), 2.0),
        Goal("worst-gap", max(max(r.sum_gap, r.max_gap, r.cost_gap) for r in rows), GAP),
    )
    return Outcome((printed,), goals, {"rows": [row.__dict__ for row in rows], "gap": GAP})


def _case(sites: int, candidates: int, seed: int, shares: tuple[float, float]) -> Row:
    built, budgets = model(sites, candidates, seed, shares)
    effort = Effort(gap=GAP)
    found, sum_seconds = _timed(lambda: allocate(built, budgets, effort=effort))
    alone, alone_seconds = _timed(lambda: allocate(built, budgets, effort=Effort(exact=False)))
    most, max_seconds = _timed(lambda: allocate(built, budgets, objective="max", effort=effort))
    free = dict(budgets, params=float("inf"))
    least, cost_seconds = _timed(
        lambda: minimise_cost(built, "params", 1.1 * found.error, free, effort=effort)
    )
    return Row(
        sites,
        candidates,
        seed,
        shares,
        found.solver,
        sum_seconds,
        found.gap,
        alone_seconds,
        alone.error / found.bound - 1,
        max_seconds,
        most.gap,
        cost_seconds,
        least.gap,
    )


def _timed(solve: Callable[[], Allocation]) -> tuple[Allocation, float]:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        answer = solve()
        seconds.append(time.perf_counter() - started)
    return answer, median(seconds)


def _summary(size: tuple[int, int], rows: list[Row]) -> tuple[object, ...]:
    own = [row for row in rows if (row.sites, row.candidates) == size]
    return (
        *size,
        len(own),
        median(row.sum_seconds for row in own),
        max(row.sum_seconds for row in own),
        max(row.sum_gap for row in own),
        median(row.lagrangian_seconds for row in own),
        max(row.lagrangian_excess for row in own),
        median(row.max_seconds for row in own),
        max(row.max_seconds for row in own),
        median(row.cost_seconds for row in own),
        max(row.cost_seconds for row in own),
    )
