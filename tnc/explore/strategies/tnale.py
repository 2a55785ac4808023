"""Alternating local enumeration: one coordinate at a time, there and back."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from tnc.explore.axes import Point, Value
from tnc.explore.problem import Problem
from tnc.explore.strategy import Strategy, strategies
from tnc.explore.trial import Asking, Batch, Scored

_Estimate = tuple[float, Point]
_Sweep = Generator[Batch, tuple[Scored, ...], _Estimate]


@strategies.register("tnale")
@dataclass(frozen=True)
class TnALE(Strategy):
    """Round trips over all coordinates within a radius of the centre (Li et al., ICML 2023).

    Every update enumerates one coordinate's window around the centre, the others at the best so
    far, and moves to the least score; first to last and back, ranks there, places once. The first
    `rounds` use windows of `radius` and, with `interpolate`, fit the first, middle and last rank
    only: errors between are two straight pieces, sizes are exact. Later rounds use `final`.
    A round whose best is the centre starts again at random coordinates near it.

    Differs from the authors' code in what costs evaluations for nothing: equal topologies are one
    trial (`Topology`); with `prune` a candidate whose bound (`Problem.floor`) is above the score of
    the point it would replace is not fitted, the bound stands for its score; and a centre is drawn
    anew after `fresh` trips that asked for nothing new (0: never), where theirs stays for good.
    """

    any_space = True
    radius: int = 2
    final: int = 1
    rounds: int = 2
    interpolate: bool = True
    prune: bool = True
    fresh: int = 2

    def search(self, problem: Problem, rng: Random) -> Asking:
        return (yield from self.around(problem, rng, self._begin(problem, rng)))

    def around(self, problem: Problem, rng: Random, centre: Point) -> Asking:
        """Search from a given centre on."""
        seen: set[str] = set()
        point, bound, number, idle = centre, float("inf"), 0, 0
        while True:
            early, known = number < self.rounds, len(seen)
            score, best = yield from self._trip(problem, seen, centre, point, early)
            if number == self.rounds:
                bound = float("inf")
            stays = best == centre or score > bound
            if score <= bound:
                bound, centre = score, best
            point = self._shaken(problem, rng, centre, early) if stays else centre
            idle = 0 if len(seen) > known else idle + 1
            number += 1
            if self.fresh and idle == self.fresh:
                centre = self._begin(problem, rng)
                point, bound, number, idle = centre, float("inf"), 0, 0

    def _begin(self, problem: Problem, rng: Random) -> Point:
        """Draw a centre that is small enough to be fitted, if a hundred draws find one."""
        for _ in range(100):
            point = problem.space.draw(rng)
            if not problem.space.refuses(problem.space.topology(point)):
                break
        return point

    def _trip(
        self, problem: Problem, seen: set[str], centre: Point, point: Point, early: bool
    ) -> _Sweep:
        """Go over all coordinates and back; return the best score and its point."""
        axes = problem.space.axes
        ranks = [k for k, axis in enumerate(axes) if axis.ordered]
        others = [k for k, axis in enumerate(axes) if not axis.ordered]
        best, where = float("inf"), point
        for k in [*ranks, *others, *(ranks[::-1] if others else ranks[-2::-1])]:
            score, point = yield from self._update(problem, seen, centre, point, k, early)
            if score < best:
                best, where = score, point
        return best, where

    def _update(
        self,
        problem: Problem,
        seen: set[str],
        centre: Point,
        point: Point,
        k: int,
        early: bool,
    ) -> _Sweep:
        """Enumerate coordinate k near the centre's and return the best score with its point."""
        axis = problem.space.axes[k]
        window = axis.near(centre[k], self.radius if early else self.final)
        values = list(dict.fromkeys([point[k], *window]))
        between: list[Value] = []
        if axis.ordered and early and self.interpolate and len(window) > 3:
            between = [v for v in window[1:-1] if v not in (window[len(window) // 2], point[k])]
        asked = [_set(point, k, value) for value in values if value not in between]
        here = yield from self._told(problem, seen, asked[:1], 0)
        hopeless = float("inf") if not self.prune else here[0].score
        bounds = {p: problem.floor(problem.space.topology(p)) for p in asked[1:]}
        rest = [p for p in asked[1:] if bounds[p] < hopeless]
        told = here + (yield from self._told(problem, seen, rest, len(between)))
        found = [(t.score, t.trial.point) for t in told]
        errors = {t.trial.point[k]: t.rse for t in told if t.outcome.ok}
        for value in between:
            found += _interpolated(problem, _set(point, k, value), k, errors)
        return min(found, key=lambda pair: pair[0])

    def _told(
        self, problem: Problem, seen: set[str], points: list[Point], between: int
    ) -> Generator[Batch, tuple[Scored, ...], tuple[Scored, ...]]:
        """Ask for points and return what became of them."""
        if not points:
            return ()
        trials = tuple(problem.trial(point) for point in points)
        seen |= {trial.key for trial in trials}
        return (yield Batch(trials, between))

    def _shaken(self, problem: Problem, rng: Random, centre: Point, early: bool) -> Point:
        """Draw all coordinates but the first from their windows, away from the centre."""
        radius = self.radius if early else self.final
        drawn: list[Value] = [centre[0]]
        for axis, value in zip(problem.space.axes[1:], centre[1:]):
            away = [other for other in axis.near(value, radius) if other != value]
            drawn.append(rng.choice(away) if away else value)
        return tuple(drawn)


def _set(point: Point, k: int, value: Value) -> Point:
    return (*point[:k], value, *point[k + 1 :])


def _interpolated(
    problem: Problem, point: Point, k: int, errors: dict[Value, float]
) -> list[_Estimate]:
    """Score a point between fitted ones: its size is known, its error on a straight line."""
    value = point[k]
    assert isinstance(value, int)
    ranks = sorted(rank for rank in errors if isinstance(rank, int))
    for low, high in pairwise(ranks):
        if low < value < high:
            share = (value - low) / (high - low)
            rse = (1 - share) * errors[low] + share * errors[high]
            topology = problem.space.topology(point)
            rse = max(rse, problem.spectra.floor(topology) if problem.spectra else 0.0)
            metrics = {"ratio": topology.ratio, "rse": rse, "params": topology.parameters}
            return [(problem.objective.score(metrics), point)]
    return []
