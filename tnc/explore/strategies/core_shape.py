"""Core shapes: the knapsack of Tucker ranks says what is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from tnc.decide.packing import Packing, shortlist
from tnc.explore.axes import Point
from tnc.explore.evaluator import Array
from tnc.explore.problem import Problem
from tnc.explore.strategy import Strategy, strategies
from tnc.explore.trial import Asking, Batch, Trial


@strategies.register("core-shape")
@dataclass(frozen=True)
class CoreShapes(Strategy):
    """Shortlist Tucker ranks by the packing of spectra, fit the best (Ghadiri et al., ICML 2023).

    At each of `budgets` sizes, in equal ratios from no bonds to all, the packing solvers choose
    ranks that keep most of the squared singular values of the unfoldings. What they drop bounds
    the error from above, the most dropped in one mode from below: ranks that cannot win are left
    out and the others are fitted `batch` a round, the least upper bound of the score first.
    """

    budgets: int = 32
    batch: int = 4

    def refuses(self, problem: Problem) -> str:
        hub = len(problem.space.modes)
        if problem.spectra is None:
            return "the target is no single tensor, so there are no spectra of its unfoldings"
        if sorted(problem.space.pairs) != [(k, hub) for k in range(hub)]:
            return "core shapes need a star: one vertex without a mode joined to every mode"
        return ""

    def search(self, problem: Problem, rng: Random) -> Asking:
        del rng
        listed = sorted(self._listed(problem).items(), key=lambda pair: (pair[1], pair[0]))
        best, fitted = float("inf"), 0
        waiting: list[Trial] = []
        for number, (point, _) in enumerate(listed, 1):
            trial = problem.trial(point)
            if problem.floor(trial.topology) < best:
                waiting.append(trial)
            if waiting and (len(waiting) == self.batch or number == len(listed)):
                told = yield Batch(tuple(waiting))
                best = min(best, *(scored.score for scored in told))
                fitted += len(waiting)
                waiting = []
        return f"all of {len(listed)} core shapes: {fitted} fitted, the others cannot be better"

    def _listed(self, problem: Problem) -> dict[Point, float]:
        """Return the solvers' ranks with the score that each has at the least."""
        space, tails = problem.space, _tails(problem)
        most = [min(space.rank, len(tail) - 1) for tail in tails]
        spectra = tuple(-np.diff(tail)[:rank] for tail, rank in zip(tails, most))
        least = 1 + sum(space.modes)
        full = int(np.prod(most)) + sum(i * r for i, r in zip(space.modes, most))
        found: dict[Point, float] = {}
        for budget in sorted({int(b) for b in np.geomspace(least, max(full, least), self.budgets)}):
            for shape in shortlist(Packing(spectra, space.modes, budget)):
                topology = space.topology(shape.ranks)
                if space.refuses(topology):
                    continue
                dropped = sum(float(tail[r]) for tail, r in zip(tails, shape.ranks))
                metrics = {"ratio": topology.ratio, "params": topology.parameters, "rse": dropped}
                found[shape.ranks] = problem.objective.score(metrics)
        return found


def _tails(problem: Problem) -> list[Array]:
    """Return the tails of the unfoldings of one mode each, in the order of modes."""
    assert problem.spectra is not None  # `refuses` has asked
    of = dict(zip(problem.spectra.cuts, problem.spectra.tails))
    count = len(problem.space.modes)
    every = (1 << count) - 1
    return [of[1 << k if 1 << k in of else every ^ (1 << k)] for k in range(count)]
