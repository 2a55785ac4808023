"""Images of order 8: the best ring that every strategy finds within 150 and 500 fits.

Rings with places on (4,) * 8, bonds 1 to 10; F = ratio + rse (weight 1: with the 5 of the papers'
graph searches the widest ring wins wherever modes sit, and there is nothing to search). Every
trial counts, quick looks and joint fits with gates too; only what a search has asked before is
free. A fit of the search is short (`SHORT`), and equal candidates are fitted once for all
strategies and seeds of an image; the best five networks after 150 and 500 are refitted (`LONG`,
their own cores one start more), and F, ratio and rse are those of the best refit so far. Seconds
are of the processor, for the strategies' own work alone. `--only` takes strategies: 'tnale,tnls'.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import log10
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np

from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.explore import (
    FitTopology,
    Found,
    Limits,
    MemoryRecord,
    Problem,
    Scored,
    Space,
    Spectra,
    engines,
    evaluators,
    objectives,
    search,
    strategies,
)

NAME = "search-images"

RANK, WEIGHT, SEEDS = 10, 1.0, 5
COUNTS = (150, 500)
SHORT: Mapping[str, Any] = {"starts": 1, "sweeps": 20}
LONG: Mapping[str, Any] = {"starts": 2, "sweeps": 100}
FINALISTS = 5
"""So many of a search's best networks are refitted, for every strategy alike."""


@dataclass(frozen=True)
class Best:
    """The best of a search after so many fits: by its short fit and refitted."""

    after: int
    short: float
    score: float
    ratio: float
    rse: float
    topology: str

    @property
    def compression(self) -> float:
        """The log compression ratio of the papers."""
        return -log10(self.ratio)


@dataclass(frozen=True)
class Run:
    """One search."""

    image: str
    strategy: str
    seed: int
    fits: int
    seconds: float
    ended: str
    best: tuple[Best, ...]


def run(arguments: Arguments) -> Outcome:
    """Search both images with all strategies; `--quick`: image A, 1 seed, 30 and 60 fits."""
    if arguments.data is None:
        raise SystemExit("search-images needs --data DIR with tnale/image_a.npz and image_b.npz")
    runs: list[Run] = []
    for image in "a" if arguments.quick else "ab":
        with np.load(arguments.data / "tnale" / f"image_{image}.npz") as held:
            tensor = held["goal"].astype(np.float64)
        runs += _searches(image, tensor, arguments)
    counts = sorted({best.after for r in runs for best in r.best})
    names = list(dict.fromkeys(r.strategy for r in runs))
    ratios = {name: _over_tnale(runs, name, counts) for name in names}
    rivals = [name for name in names if name != "tnale"]
    first = min(rivals, key=lambda name: geometric_mean(ratios[name].values()))
    goals = [
        Goal(f"{first} over tnale, {case}", value, 1.0) for case, value in ratios[first].items()
    ]
    heads = (
        "image",
        "fits",
        "strategy",
        "F",
        "least",
        "most",
        "log CR",
        "rse",
        "own s",
        "over tnale",
    )
    rows = [
        _row(runs, image, after, name, ratios[name])
        for image in sorted({r.image for r in runs})
        for after in counts
        for name in names
    ]
    figures = {
        "runs": [asdict(r) for r in runs],
        "over tnale": ratios,
        "weight": WEIGHT,
        "rank": RANK,
        "fits": {"short": dict(SHORT), "long": dict(LONG), "finalists": FINALISTS},
        "refused": _refused(),
    }
    return Outcome((table(heads, rows),), tuple(goals), figures)


def _searches(image: str, tensor: np.ndarray, arguments: Arguments) -> list[Run]:
    """Run all searches of an image, without those that a checkpoint has."""
    problem = _problem(tensor)
    record = MemoryRecord()
    counts = (30, 60) if arguments.quick else COUNTS
    wanted = arguments.only.split(",") if arguments.only else list(strategies.all())
    found = []
    for seed in range(1 if arguments.quick else SEEDS):
        for name in wanted:
            if strategies.get(name)().refuses(problem):
                continue
            file = _file(arguments.checkpoint, f"{image}-{name}-{seed}-{counts[-1]}.json")
            if file is None or not file.is_file():
                done = _search(image, name, seed, tensor, problem, record, counts)
                print(image, name, seed, [f"{best.score:.5f}" for best in done.best], flush=True)
                if file is not None:
                    file.write_text(json.dumps(asdict(done)), encoding="utf-8")
            else:
                held = json.loads(file.read_text(encoding="utf-8"))
                done = Run(**{**held, "best": tuple(Best(**best) for best in held["best"])})
            found.append(done)
    return found


def _search(
    image: str,
    name: str,
    seed: int,
    tensor: np.ndarray,
    problem: Problem,
    record: MemoryRecord,
    counts: Sequence[int],
) -> Run:
    work = FitTopology(tensor, evaluators.get("als")(**SHORT), problem.spectra)
    begun, fitting = time.process_time(), 0.0

    def timed(task: Any) -> Any:
        nonlocal fitting
        started = time.process_time()
        done = work(task)
        fitting += time.process_time() - started
        return done

    with engines.get("serial")().open(timed) as pool:
        limits = Limits(evaluations=counts[-1])
        found = search(problem, strategies.get(name)(), pool, record, limits, seed)
    own = time.process_time() - begun - fitting
    best: list[Best] = []
    for after in counts:
        refitted = _refitted(found, after, tensor, problem, record)
        if best and best[-1].score < refitted.score:
            refitted = replace(best[-1], after=after)
        best.append(refitted)
    return Run(image, name, seed, len(found.trials), own, found.ended, tuple(best))


def _refitted(
    found: Found, after: int, tensor: np.ndarray, problem: Problem, record: MemoryRecord
) -> Best:
    """Refit the finalists among the first trials in full, and return the best of them."""
    ranked = sorted(found.trials[:after], key=lambda told: told.score)
    finalists: dict[str, Scored] = {}
    for told in ranked:
        finalists.setdefault(str(told.trial.topology), told)
    chosen = list(finalists.values())[:FINALISTS]
    refits = [_refit(told, after, tensor, problem, record) for told in chosen]
    return min(refits, key=lambda best: best.score)


def _refit(
    told: Scored, after: int, tensor: np.ndarray, problem: Problem, record: MemoryRecord
) -> Best:
    topology = told.trial.topology
    long = evaluators.get("als")(**LONG)
    fit = long.fit(tensor, topology, seed=0, start=record.cores(told.trial.key))
    score = problem.objective.score({"ratio": topology.ratio, "rse": fit.rse})
    return Best(after, told.score, score, topology.ratio, fit.rse, str(topology))


def _problem(tensor: np.ndarray) -> Problem:
    space = Space.of(tensor.shape, "ring", RANK)
    objective = objectives.get("size-and-error")(WEIGHT)  # type: ignore[call-arg]
    return Problem(space, objective, Spectra.of(tensor))


def _refused() -> dict[str, str]:
    """Return the strategies that do not apply, with their reasons."""
    problem = _problem(np.ones((4,) * 8))
    told = {name: kind().refuses(problem) for name, kind in strategies.all().items()}
    return {name: why for name, why in told.items() if why}


def _over_tnale(runs: Sequence[Run], name: str, counts: Sequence[int]) -> dict[str, float]:
    """Return the median F over that of tnale, by image and count."""
    return {
        f"image {image} at {after}": median(_scores(runs, image, after, name))
        / (median(_scores(runs, image, after, "tnale") or [float("nan")]))
        for image in sorted({r.image for r in runs})
        for after in counts
    }


def _scores(runs: Sequence[Run], image: str, after: int, name: str) -> list[float]:
    return [best.score for best in _bests(runs, image, after, name)]


def _bests(runs: Sequence[Run], image: str, after: int, name: str) -> list[Best]:
    return [
        best
        for r in runs
        for best in r.best
        if (r.image, r.strategy, best.after) == (image, name, after)
    ]


def _row(
    runs: Sequence[Run], image: str, after: int, name: str, ratios: Mapping[str, float]
) -> tuple[object, ...]:
    bests = _bests(runs, image, after, name)
    scores = [best.score for best in bests]
    own = [r.seconds for r in runs if (r.image, r.strategy) == (image, name)]
    return (
        image,
        after,
        name,
        median(scores),
        min(scores),
        max(scores),
        median(best.compression for best in bests),
        median(best.rse for best in bests),
        median(own),
        ratios[f"image {image} at {after}"],
    )


def _file(folder: Path | None, name: str) -> Path | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name
