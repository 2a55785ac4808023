"""A genetic algorithm: ranks and places are genes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import log
from random import Random

from tnc.explore.axes import Axis, Places, Point, Value
from tnc.explore.problem import Problem
from tnc.explore.strategy import Strategy, strategies
from tnc.explore.trial import Asking, Batch


@strategies.register("tnga")
@dataclass(frozen=True)
class TNGA(Strategy):
    """Generations of `population` points (Li and Sun, TNGA, ICML 2020).

    The best share `keep` are parents: the one of rank k, from 0, with a weight of
    `max(log(alpha / (0.01 + 5 k)), 0.01)`. A child has half of its genes, drawn at random, from
    one parent and the rest from the other; an order of places is crossed as orders are: a stretch
    of one, what is missing in the order of the other. Every gene then mutates with a chance of
    `mutation`: to any other value, or by an exchange of two places. Children replace all parents.
    """

    population: int = 60
    keep: float = 0.9
    alpha: float = 100.0
    mutation: float = 0.25

    def search(self, problem: Problem, rng: Random) -> Asking:
        space = problem.space
        points = [space.allowed(rng) for _ in range(self.population)]
        while True:
            told = yield Batch(tuple(problem.trial(point) for point in points))
            ranked = sorted(told, key=lambda scored: scored.score)
            elite = [scored.trial.point for scored in ranked[: max(2, int(self.keep * len(told)))]]
            weights = [max(log(self.alpha / (0.01 + 5 * k)), 0.01) for k in range(len(elite))]
            draw = partial(self._child, space.axes, elite, weights, rng)
            points = [space.allowed(rng, draw) for _ in range(self.population)]

    def _child(
        self, axes: tuple[Axis, ...], elite: list[Point], weights: list[float], rng: Random
    ) -> Point:
        first, second = rng.choices(elite, weights, k=2)
        genes = range(len(axes))
        crossed = set(rng.sample(genes, len(axes) // 2))
        child: list[Value] = []
        for k, axis in enumerate(axes):
            value = second[k] if k in crossed else first[k]
            if isinstance(axis, Places):
                value = _ordered(first[k], second[k], rng)
            if rng.random() < self.mutation:
                others = axis.near(value, 1)[1:] if isinstance(axis, Places) else axis.values()
                value = rng.choice([other for other in others if other != value] or [value])
            child.append(value)
        return tuple(child)


def _ordered(first: Value, second: Value, rng: Random) -> tuple[int, ...]:
    """Cross two orders: a stretch of the first, the others in the order of the second."""
    assert isinstance(first, tuple) and isinstance(second, tuple)
    low, high = sorted(rng.sample(range(len(first) + 1), 2))
    rest = iter([value for value in second if value not in first[low:high]])
    return tuple(first[k] if low <= k < high else next(rest) for k in range(len(first)))
