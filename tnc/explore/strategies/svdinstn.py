"""Sparse gates: one joint fit says which bonds are needed and how wide."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tnc.explore.axes import Places, Point, Rank, Value
from tnc.explore.problem import Problem
from tnc.explore.strategy import Strategy, strategies
from tnc.explore.trial import Asking, Batch, Scored, Trial


@strategies.register("svdinstn")
@dataclass(frozen=True)
class SVDinsTN(Strategy):
    """Ask for few fits, each of all bonds with sparse gates (Zheng et al., SVDinsTN, CVPR 2024).

    The widest network that is not above `ratio` times the dense size, all bonds alike, is fitted
    jointly with a diagonal gate on every bond, once for each of `thresholds` (shares of the
    tensor's norm); what is left of the bonds is then fitted in full from there. It ends after the
    last threshold, unless modes have places and `restart` draws others. A joint fit counts as an
    evaluation, of the wide network.
    """

    thresholds: tuple[float, ...] = (0.02, 0.01, 0.005, 0.002, 0.001)
    ratio: float = 4.0
    restart: bool = False

    def refuses(self, problem: Problem) -> str:
        if problem.spectra is None:
            return "the target is no single tensor, so there is nothing to fit jointly"
        if problem.space.hidden:
            return "gates are on bonds between modes: the space has vertices without a mode"
        return ""

    def search(self, problem: Problem, rng: Random) -> Asking:
        places = any(not isinstance(axis, Rank) for axis in problem.space.axes)
        while True:
            wide = self._wide(problem, rng)
            joint = yield Batch(
                tuple(Trial(wide.point, wide.topology, gates=gates) for gates in self.thresholds)
            )
            found: dict[str, Trial] = {}
            for scored in joint:
                point = _left(problem, scored)
                trial = problem.trial(point, 1.0, scored.trial.key)
                if scored.outcome.ok and not problem.space.refuses(trial.topology):
                    found.setdefault(trial.topology.key, trial)
            if found:
                yield Batch(tuple(found.values()))
            if not places or not self.restart:
                return f"all of {len(self.thresholds)} thresholds"

    def _wide(self, problem: Problem, rng: Random) -> Trial:
        """Return the widest network, modes at places that are drawn."""
        space = problem.space
        drawn = space.draw(rng)
        for rank in range(space.rank, 0, -1):
            point: Point = tuple(
                min(rank, axis.high) if isinstance(axis, Rank) else value
                for axis, value in zip(space.axes, drawn)
            )
            topology = space.topology(point)
            if topology.ratio <= self.ratio and not space.refuses(topology):
                break
        return Trial(point, topology)


def _left(problem: Problem, scored: Scored) -> Point:
    """Return the point of what a joint fit has left of the bonds."""
    space, point = problem.space, scored.trial.point
    orders = [v for axis, v in zip(space.axes, point) if isinstance(axis, Places)]
    order: Value = orders[0] if orders else tuple(range(len(space.modes)))
    assert isinstance(order, tuple)
    left = list(point)
    for k, pair in enumerate(space.pairs):
        a, b = sorted(order[v] for v in pair)
        left[k] = int(scored.outcome.metrics.get(f"kept {a + 1}-{b + 1}", 1.0))
    return tuple(left)
