"""Random search: what every other strategy has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tnc.explore.problem import Problem
from tnc.explore.strategy import Strategy, strategies
from tnc.explore.trial import Asking, Batch


@strategies.register("random")
@dataclass(frozen=True)
class RandomSearch(Strategy):
    """Points drawn alike, `batch` a round, for ever."""

    batch: int = 8

    def search(self, problem: Problem, rng: Random) -> Asking:
        while True:
            yield Batch(tuple(problem.trial(problem.space.draw(rng)) for _ in range(self.batch)))
