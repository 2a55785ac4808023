"""Spectra of unfoldings say where to look, a Gaussian process what they miss."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from tnc.explore.axes import Places, Point, Rank
from tnc.explore.evaluator import Array
from tnc.explore.problem import Problem
from tnc.explore.regression import Process
from tnc.explore.strategy import Strategy, strategies
from tnc.explore.surface import Surface, contains
from tnc.explore.trial import Asking, Batch, Scored, Trial

Rounds = Generator[Batch, tuple[Scored, ...], None]

IDLE = 200
"""So many batches of round trips that ask for nothing new are the end of them."""

_LEAST = 1e-9
"""Squared relative errors below this are alike."""


@strategies.register("spectral")
@dataclass(frozen=True)
class Spectral(Strategy):
    """Fit what may score best by everything known of its error (tnc's own).

    Before the first fit every candidate has a lower bound of its error, the largest tail of the
    tensor's unfoldings at the ranks that its bonds allow. Fits add bounds from both sides, since a
    topology inside another cannot fit better, and a Gaussian process learns by how much errors are
    above their bounds. `batch` candidates of the least optimistic score (`optimism` standard
    deviations) are fitted a round, found by `climbs` descents over neighbouring points, half of
    them from the best points so far. With `warm` a fit also starts from the nearest fitted cores.
    """

    batch: int = 4
    climbs: int = 24
    optimism: float = 1.0
    warm: bool = False
    patience: int = 40
    trips: str = "tnale"

    def refuses(self, problem: Problem) -> str:
        if problem.spectra is None:
            return "the target is no single tensor, so there are no spectra of its unfoldings"
        return ""

    def search(self, problem: Problem, rng: Random) -> Asking:
        assert problem.spectra is not None  # `refuses` has asked
        known = _Known(problem, Surface(problem.space, problem.spectra))
        while True:
            yield from self._by_process(known, rng)
            if not known.told:
                return "nothing that is known can be fitted"
            before = len(known.keys)
            yield from self._by_trips(known, rng)
            if len(known.keys) == before:
                return "nothing near the best of what is known is left to fit"

    def _by_process(self, known: _Known, rng: Random) -> Rounds:
        """Fit what the process expects to be best, until `patience` fits brought nothing."""
        last = len(known.keys)
        while len(known.keys) - last < self.patience:
            trials = self._trials(known, rng)
            if not trials:
                return
            if known.learn((yield Batch(trials))):
                last = len(known.keys)

    def _by_trips(self, known: _Known, rng: Random) -> Rounds:
        """Let another strategy search from the best on, until `patience` fits brought nothing."""
        centre = known.best(1)[0].trial.point
        asking = strategies.get(self.trips)().around(known.problem, rng, centre)  # type: ignore[attr-defined]
        batch, last, asked = next(asking), len(known.keys), 0
        while len(known.keys) - last < self.patience and asked < IDLE:
            before = len(known.keys)
            told = yield batch
            if known.learn(told):
                last = len(known.keys)
            asked = 0 if len(known.keys) > before else asked + 1
            batch = asking.send(told)

    def _trials(self, known: _Known, rng: Random) -> tuple[Trial, ...]:
        space = known.problem.space
        points = [told.trial.point for told in known.best(self.climbs // 2)]
        points += [space.draw(rng) for _ in range(self.climbs - len(points))]
        seen: dict[Point, float] = {}
        scores = known.scores(points, self.optimism)
        seen.update(zip(points, scores))
        active = list(dict.fromkeys(points))
        while active:
            near = {point: list(neighbours(space.axes, point)) for point in active}
            new = list(dict.fromkeys(p for ps in near.values() for p in ps if p not in seen))
            if new:
                seen.update(zip(new, known.scores(new, self.optimism)))
            moved = [min(ps, key=lambda p: seen[p]) for ps in near.values()]
            active = list(
                dict.fromkeys(p for p, old in zip(moved, active) if seen[p] < seen[old] - 1e-12)
            )
        trials: dict[str, Trial] = {}
        for point in sorted(seen, key=lambda p: seen[p]):
            trial = known.problem.trial(point)
            key = trial.topology.key
            if key in known.keys or key in trials or space.refuses(trial.topology):
                continue
            start = known.nearest(point) if self.warm else ""
            trials[key] = Trial(point, trial.topology, 1.0, start)
            if len(trials) == self.batch:
                break
        return tuple(trials.values())


def neighbours(axes: Sequence[object], point: Point) -> Iterator[Point]:
    """Yield the points one step away: a rank up or down, one up and another down, an exchange."""
    ranks = [k for k, axis in enumerate(axes) if isinstance(axis, Rank)]
    steps: list[tuple[int, int]] = [(k, by) for k in ranks for by in (-1, 1)]
    moved: dict[tuple[int, int], int] = {}
    for k, by in steps:
        axis, value = axes[k], point[k]
        assert isinstance(axis, Rank) and isinstance(value, int)
        if axis.low <= value + by <= axis.high:
            moved[k, by] = value + by
            yield (*point[:k], value + by, *point[k + 1 :])
    for (up, by), more in moved.items():
        for (down, other), less in moved.items():
            if by == 1 and other == -1 and up != down:
                both = list(point)
                both[up], both[down] = more, less
                yield tuple(both)
    for k, axis in enumerate(axes):
        if isinstance(axis, Places):
            for order in axis.near(point[k], 1)[1:]:
                yield (*point[:k], order, *point[k + 1 :])


@dataclass
class _Known:
    """What fits have told, and what follows for points that were not fitted."""

    problem: Problem
    surface: Surface
    told: list[Scored] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    process: Process | None = None

    def learn(self, scored: Sequence[Scored]) -> bool:
        """Add what a round has found; say whether it has a better score than all before."""
        new = [told for told in scored if told.trial.topology.key not in self.keys]
        best = min((told.score for told in self.told), default=float("inf"))
        self.keys |= {told.trial.topology.key for told in new}
        fitted = [told for told in new if told.outcome.ok]
        self.told += fitted
        if fitted:
            self._teach()
        return any(told.score < best for told in fitted)

    def _teach(self) -> None:
        self._rows = self.surface.rows([told.trial.point for told in self.told])
        self._errors = np.array([told.rse for told in self.told])
        if len(self.told) > 2:
            missed = np.log(self._errors + _LEAST) - self._floors(self._rows)
            self.process = Process.of(self._rows, missed)

    def best(self, count: int) -> list[Scored]:
        """Return the fits with the least scores."""
        return sorted(self.told, key=lambda told: told.score)[:count]

    def nearest(self, point: Point) -> str:
        """Return the key of the fit whose bonds are nearest."""
        if not self.told:
            return ""
        away = np.square(self._rows - self.surface.rows([point])).sum(axis=1)
        return self.told[int(away.argmin())].trial.key

    def scores(self, points: Sequence[Point], optimism: float) -> list[float]:
        """Return the score of every point at the error that it may have."""
        rows = self.surface.rows(points)
        floors = self._floors(rows)
        errors = np.exp(floors)
        if self.process is not None:
            mean, deviation = self.process.at(rows)
            errors = np.exp(np.minimum(floors + mean - optimism * deviation, 0.0))
        if self.told:
            low = np.where(contains(self._rows, rows), self._errors[:, None], 0.0).max(axis=0)
            high = np.where(contains(rows, self._rows), self._errors[None], 1.0).min(axis=1)
            errors = np.clip(errors, np.maximum(low, np.exp(floors)), np.maximum(high, low))
        score = self.problem.objective.score
        return [
            score({"ratio": ratio, "rse": error, "params": ratio})
            for ratio, error in zip(self.surface.ratios(rows).tolist(), errors.tolist())
        ]

    def _floors(self, rows: Array) -> Array:
        found: Array = np.log(self.surface.tails(rows).max(axis=1, initial=0.0) + _LEAST)
        return found
