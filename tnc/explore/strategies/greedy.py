"""Greedy growth: from no bonds, the bond whose growth helps most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tnc.explore.axes import Point, Rank
from tnc.explore.problem import Problem
from tnc.explore.space import Space
from tnc.explore.strategy import Strategy, strategies
from tnc.explore.trial import Asking, Batch, Trial


@strategies.register("greedy")
@dataclass(frozen=True)
class Greedy(Strategy):
    """Widen one bond after another (Hashemizadeh et al., Adaptive Learning of TN Structures, 2020).

    From the network without bonds, every bond is tried `step` wider by a fit of `effort`, started
    from the cores so far; the least score is fitted in full from there. It ends when no bond
    helps; where modes have places or there are other choices, it starts again with others drawn,
    unless `restart` is off.

    The paper's node splits need vertices without modes: where the space has some, the bonds of a
    path through them from one mode to another also grow together, by which a bond between two
    cores comes to lead through a core of its own, and a third one may join it.
    """

    step: int = 1
    effort: float = 0.1
    restart: bool = True

    def search(self, problem: Problem, rng: Random) -> Asking:
        moves = tuple(_moves(problem.space))
        again = self.restart and not all(isinstance(a, Rank) for a in problem.space.axes)
        while True:
            why = yield from self._grow(problem, _bare(problem.space, rng), moves)
            if not again:
                return why

    def _grow(self, problem: Problem, point: Point, moves: tuple[tuple[int, ...], ...]) -> Asking:
        (best,) = yield Batch((problem.trial(point),))
        while True:
            tried = self._tries(problem, best.trial, moves)
            if not tried:
                return "no bond can grow"
            told = yield Batch(tried)
            chosen = min(told, key=lambda scored: scored.score)
            if self.effort < 1.0:
                (full,) = yield Batch((problem.trial(chosen.trial.point, 1.0, chosen.trial.key),))
                chosen = min(full, chosen, key=lambda scored: scored.score)
            if not chosen.score < best.score:
                return "no bond that grows makes the score better"
            best = chosen

    def _tries(
        self, problem: Problem, parent: Trial, moves: tuple[tuple[int, ...], ...]
    ) -> tuple[Trial, ...]:
        """Return a trial for every move that makes a difference and is not refused."""
        found: dict[str, Trial] = {}
        for move in moves:
            grown = list(parent.point)
            for k in move:
                axis, value = problem.space.axes[k], grown[k]
                assert isinstance(axis, Rank) and isinstance(value, int)
                grown[k] = min(value + self.step, axis.high)
            trial = problem.trial(tuple(grown), self.effort, parent.key)
            if trial.topology != parent.topology and not problem.space.refuses(trial.topology):
                found.setdefault(trial.topology.key, trial)
        return tuple(found.values())


def _bare(space: Space, rng: Random) -> Point:
    """Return a point with all ranks at their least and everything else drawn."""
    return tuple(axis.low if isinstance(axis, Rank) else axis.draw(rng) for axis in space.axes)


def _moves(space: Space) -> Iterator[tuple[int, ...]]:
    """Yield the bonds that grow together: each alone, and paths through vertices without modes."""
    count = len(space.modes)
    yield from ((k,) for k in range(len(space.pairs)))
    for a in range(count):
        paths: list[tuple[int, tuple[int, ...]]] = [(a, ())]
        while paths:
            end, path = paths.pop()
            for k, pair in enumerate(space.pairs):
                if end not in pair or k in path:
                    continue
                other = sum(pair) - end
                if other >= count:
                    paths.append((other, (*path, k)))
                elif path and other > a:
                    yield tuple(sorted((*path, k)))
