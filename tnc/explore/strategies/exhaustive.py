"""Every candidate, smallest first."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tnc.explore.counting import candidates, size_of
from tnc.explore.problem import Problem
from tnc.explore.strategy import Strategy, strategies
from tnc.explore.trial import Asking, Batch, Trial


@strategies.register("exhaustive")
@dataclass(frozen=True)
class Exhaustive(Strategy):
    """All candidates in order of size, without those whose bound says that they cannot win.

    `batch` are fitted a round. The best is the best of the space, up to the fits. Spaces of more
    than `limit` candidates are refused.
    """

    batch: int = 16
    limit: int = 100_000

    def refuses(self, problem: Problem) -> str:
        found = size_of(problem.space, self.limit)
        return f"the space has {found}, at most {self.limit} are tried" if not found.exact else ""

    def search(self, problem: Problem, rng: Random) -> Asking:
        del rng
        listed = sorted(
            candidates(problem.space), key=lambda pair: (pair[1].parameters, pair[1].key)
        )
        best, fitted = float("inf"), 0
        waiting: list[Trial] = []
        for number, (point, topology) in enumerate(listed, 1):
            if problem.floor(topology) < best:
                waiting.append(Trial(point, topology))
            if waiting and (len(waiting) == self.batch or number == len(listed)):
                told = yield Batch(tuple(waiting))
                best = min(best, *(scored.score for scored in told))
                fitted += len(waiting)
                waiting = []
        return f"all of {len(listed)} candidates: {fitted} fitted, the others cannot be better"
