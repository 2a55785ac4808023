"""Random search: what every other strategy has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tnc.explore.problem import Problem
from tnc.explore.strategy import Strategy, strategies
from tnc.explore.trial import Asking, Batch, Trial


@strategies.register("random")
@dataclass(frozen=True)
class RandomSearch(Strategy):
    """Points drawn alike, `batch` a round, none twice; ends when `tries` draws give nothing new."""

    any_space = True
    batch: int = 8
    tries: int = 1000

    def search(self, problem: Problem, rng: Random) -> Asking:
        seen: set[str] = set()
        while True:
            trials: list[Trial] = []
            for _ in range(self.tries):
                trial = problem.trial(problem.space.allowed(rng))
                if trial.key not in seen:
                    seen.add(trial.key)
                    trials.append(trial)
                if len(trials) == self.batch:
                    break
            if not trials:
                return f"{self.tries} draws gave nothing new"
            yield Batch(tuple(trials))
