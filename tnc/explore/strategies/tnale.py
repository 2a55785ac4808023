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

    Differs from the authors' code in what costs evaluations for nothing: equal topologies are
    one trial (`Topology`), and a round that finds nothing new within its windows restarts.
    """

    radius: int = 2
    final: int = 1
    rounds: int = 2
    interpolate: bool = True
    restart: bool = True

    def search(self, problem: Problem, rng: Random) -> Asking:
        centre = self._begin(problem, rng)
        point, bound, number = centre, float("inf"), 0
        while True:
            early = number < self.rounds
            score, best, moved = yield from self._trip(problem, rng, centre, point, early)
            if number == self.rounds:
                bound = float("inf")
            if score <= bound:
                stays = best == centre
                bound, centre = score, best
            else:
                stays = True
            point = centre
            if stays or not moved:
                point = self._shaken(problem, rng, centre, early)
            number += 1

    def _begin(self, problem: Problem, rng: Random) -> Point:
        """Draw a centre that is small enough to be fitted, if a hundred draws find one."""
        for _ in range(100):
            point = problem.space.draw(rng)
            if not problem.space.refuses(problem.space.topology(point)):
                break
        return point

    def _trip(
        self, problem: Problem, rng: Random, centre: Point, point: Point, early: bool
    ) -> Generator[Batch, tuple[Scored, ...], tuple[float, Point, bool]]:
        """Go over all coordinates and back; return the best score, its point, and if it moved."""
        axes = problem.space.axes
        ranks = [k for k, axis in enumerate(axes) if axis.ordered]
        others = [k for k, axis in enumerate(axes) if not axis.ordered]
        best, where = float("inf"), point
        start = point
        for k in [*ranks, *others, *(ranks[::-1] if others else ranks[-2::-1])]:
            score, point = yield from self._update(problem, centre, point, k, early)
            if score < best:
                best, where = score, point
        return best, where, where != start

    def _update(self, problem: Problem, centre: Point, point: Point, k: int, early: bool) -> _Sweep:
        """Enumerate coordinate k near the centre's and return the best score with its point."""
        axis = problem.space.axes[k]
        window = axis.near(centre[k], self.radius if early else self.final)
        values = list(dict.fromkeys([*window, point[k]]))
        if axis.ordered and early and self.interpolate and len(window) > 3:
            asked = sorted({window[0], window[len(window) // 2], window[-1]})
            between = [value for value in window if value not in asked]
        else:
            asked, between = list(values), []
        trials = tuple(problem.trial(_set(point, k, value)) for value in asked)
        scored = yield Batch(trials, len(between))
        found = [(told.score, told.trial.point) for told in scored]
        found += _interpolated(problem, point, k, between, scored)
        return min(found, key=lambda pair: pair[0])

    def _shaken(self, problem: Problem, rng: Random, centre: Point, early: bool) -> Point:
        """Draw all coordinates but the first from their windows, away from the centre."""
        if not self.restart:
            return centre
        radius = self.radius if early else self.final
        drawn: list[Value] = [centre[0]]
        for axis, value in zip(problem.space.axes[1:], centre[1:]):
            away = [other for other in axis.near(value, radius) if other != value]
            drawn.append(rng.choice(away) if away else value)
        return tuple(drawn)


def _set(point: Point, k: int, value: Value) -> Point:
    return (*point[:k], value, *point[k + 1 :])


def _interpolated(
    problem: Problem, point: Point, k: int, between: list[Value], scored: tuple[Scored, ...]
) -> list[_Estimate]:
    """Score ranks between fitted ones: their size is known, their error on a straight line."""
    found = []
    told = sorted((t for t in scored if t.outcome.ok), key=lambda t: t.trial.point[k])
    for value in between:
        assert isinstance(value, int)
        for low, high in pairwise(told):
            a, b = low.trial.point[k], high.trial.point[k]
            assert isinstance(a, int) and isinstance(b, int)
            if a < value < b:
                share = (value - a) / (b - a)
                rse = (1 - share) * low.rse + share * high.rse
                candidate = _set(point, k, value)
                topology = problem.space.topology(candidate)
                metrics = {"ratio": topology.ratio, "rse": rse, "params": topology.parameters}
                found.append((problem.objective.score(metrics), candidate))
    return found
