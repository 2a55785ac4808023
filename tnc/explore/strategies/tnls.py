"""Local sampling: normal steps around the best point so far."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random

from tnc.explore.axes import Axis, Places, Point, Rank, Value
from tnc.explore.problem import Problem
from tnc.explore.strategy import Strategy, strategies
from tnc.explore.trial import Asking, Batch


@strategies.register("tnls")
@dataclass(frozen=True)
class TNLS(Strategy):
    """Sample around the best and move there when a sample is better (Li et al., TNLS, ICML 2022).

    Round t draws `samples` points: ranks are those of the best plus `round(N(0, s^2))`, clipped,
    with `s^2 = decay^t`, at least `floor`; orders of places are the best's after up to `swaps`
    exchanges, drawn alike; every other choice is the best's or, as likely as each other, another.
    """

    samples: int = 60
    decay: float = 0.99
    floor: float = 0.3
    swaps: int = 1

    def search(self, problem: Problem, rng: Random) -> Asking:
        space = problem.space
        (best,) = yield Batch((problem.trial(space.allowed(rng)),))
        variance = 1.0
        while True:
            deviation = max(variance, self.floor) ** 0.5
            near = partial(self._near, space.axes, best.trial.point, deviation, rng)
            points = [space.allowed(rng, near) for _ in range(self.samples)]
            told = yield Batch(tuple(problem.trial(point) for point in points))
            best = min((best, *told), key=lambda scored: scored.score)
            variance *= self.decay

    def _near(self, axes: tuple[Axis, ...], centre: Point, deviation: float, rng: Random) -> Point:
        return tuple(self._step(axis, value, deviation, rng) for axis, value in zip(axes, centre))

    def _step(self, axis: Axis, value: Value, deviation: float, rng: Random) -> Value:
        if isinstance(axis, Rank):
            assert isinstance(value, int)
            return min(max(value + round(rng.gauss(0.0, deviation)), axis.low), axis.high)
        if isinstance(axis, Places):
            for _ in range(rng.randint(0, self.swaps)):
                value = rng.choice(axis.near(value, 1)[1:])
            return value
        return rng.choice(axis.near(value, 1))
