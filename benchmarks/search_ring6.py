"""The tensor of the TnALE authors' demo: how many fits until its true ring is found.

Order 6, every mode 3, an exact ring of 126 parameters: F = ratio + 200 rse is .1728 there and
nowhere less. The space is that of rings with places, bonds 1 to 6 (2.8 million points a place
of 60). A seed counts as solved when a fit scores F <= .1729 within 288 fits. `reference` is our
TnALE with the paper's inner solve (`adam`) and the same seeds, two of them by default.

Seconds are of the processor and count fits and the strategy's own work. Equal candidates are
fitted once within a seed and never shared between seeds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.explore import (
    FitTopology,
    Limits,
    MemoryRecord,
    Problem,
    Space,
    Spectra,
    engines,
    evaluators,
    objectives,
    search,
    strategies,
)

NAME = "search-ring6"

SOLVED = 0.1729
MOST = 288
SEEDS = 10
REFERENCE_SEEDS = 2
RANK = 6


@dataclass(frozen=True)
class Runs:
    """Fits until solved (infinite when not) and seconds, by seed."""

    fits: tuple[float, ...]
    seconds: tuple[float, ...]
    best: tuple[float, ...]

    @property
    def solved(self) -> int:
        """How many seeds found the ring."""
        return sum(count < float("inf") for count in self.fits)


def run(arguments: Arguments) -> Outcome:
    """Search with every registered strategy; `--quick` takes 3 seeds and leaves the reference."""
    if arguments.data is None:
        raise SystemExit("search-ring6 needs --data DIR with tnale/ring6.npz in it")
    tensor = np.load(arguments.data / "tnale" / "ring6.npz")["goal"].astype(np.float64)
    seeds = 3 if arguments.quick else SEEDS
    found: dict[str, Runs] = {}
    for name, kind in strategies.all().items():
        if not _applies(tensor, name):
            continue
        del kind
        found[name] = _runs(tensor, name, "als", range(seeds))
        print(name, found[name].fits, f"{sum(found[name].seconds):.0f} s", flush=True)
    if not arguments.quick:
        found["reference"] = _runs(tensor, "tnale", "adam", range(REFERENCE_SEEDS))
    rows = [
        (
            name,
            f"{runs.solved} of {len(runs.fits)}",
            median(runs.fits),
            median(runs.seconds),
            median(runs.best),
        )
        for name, runs in found.items()
    ]
    best = min(found, key=lambda name: (-found[name].solved, median(found[name].fits)))
    share = len(found["tnale"].fits) / 10
    goals = (
        Goal("tnale: seeds solved", found["tnale"].solved, 9 * share, "at least"),
        Goal("tnale: median fits", median(found["tnale"].fits), 110),
        Goal(f"{best}: seeds solved", found[best].solved, 10 * share, "at least"),
        Goal(f"{best}: median fits", median(found[best].fits), 60),
    )
    heads = ("strategy", "solved", "median fits", "median s", "median best F")
    figures = {name: vars(runs) for name, runs in found.items()}
    return Outcome((table(heads, rows),), goals, figures)


def _problem(tensor: np.ndarray) -> Problem:
    space = Space.of(tensor.shape, "ring", RANK)
    objective = objectives.get("size-and-error")(200.0)  # type: ignore[call-arg]
    return Problem(space, objective, Spectra.of(tensor))


def _applies(tensor: np.ndarray, name: str) -> bool:
    return not strategies.get(name)().refuses(_problem(tensor))


def _runs(tensor: np.ndarray, name: str, evaluator: str, seeds: range) -> Runs:
    problem = _problem(tensor)
    fits, seconds, best = [], [], []
    for seed in seeds:
        begun = time.process_time()
        work = FitTopology(tensor, evaluators.get(evaluator)(), problem.spectra, seed)
        with engines.get("serial")().open(work) as pool:
            limits = Limits(evaluations=MOST, target=SOLVED)
            found = search(problem, strategies.get(name)(), pool, MemoryRecord(), limits, seed)
        score = found.best.score if found.best else float("inf")
        first = [k for k, told in enumerate(found.trials, 1) if told.score <= SOLVED]
        fits.append(float(first[0]) if first else float("inf"))
        seconds.append(time.process_time() - begun)
        best.append(score)
    return Runs(tuple(fits), tuple(seconds), tuple(best))
