"""Lagrangian bound of the multiple-choice knapsack, and selections repaired from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tnc.decide.allocation.knapsack import Floats, Ints, Knapsack

SAFETY = 2e-15
"""Rounding of a Lagrangian, relative to its terms, that is taken off every bound."""

BOX = 1e7
"""Largest multipliers tried: with greater ones rounding outweighs what they prove."""


@dataclass(frozen=True, eq=False)
class Dual:
    """Hold what the Lagrangian says about a scaled knapsack.

    `multipliers` (rows,); `bound`: no selection that fits has a smaller value (+inf: none fits);
    `picks`: the best selection that was found to fit, None without one.
    """

    multipliers: Floats
    bound: float
    picks: Ints | None


def solve_dual(
    knapsack: Knapsack, *, any_fit: bool = False, rounds: int = 200, tolerance: float = 1e-9
) -> Dual:
    """Maximise the Lagrangian bound by cutting planes, then repair selections until they fit.

    L(y) = sum_s min_j (values[s, j] + y . weights[s, j]) - y . limits,  y >= 0

    Every selection x gives the cut L(y) <= value(x) + y . (totals(x) - limits); the next y is the
    best of a small linear program over all cuts in a box that grows while it binds. For one row
    this is bisection between slopes. L above the largest value of any selection proves that none
    fits. Expects `Knapsack.scaled`.
    Method: Kelley 1960; Kellerer et al., Knapsack Problems, ch. 11.
    """
    climb = _Climb(knapsack)
    worst = float(np.where(knapsack.open, knapsack.values, -np.inf).max(axis=1).sum())
    box = 16.0
    for _ in range(rounds):
        if any_fit and climb.met:
            return Dual(climb.best, climb.bound, climb.met[0])
        ceiling, multipliers = climb.next_multipliers(box)
        settled = not climb.visit(multipliers)
        if climb.bound > worst + 1e-6 * max(1.0, abs(worst)):
            return Dual(climb.best, np.inf, None)
        if settled or ceiling - climb.bound <= tolerance * max(1.0, abs(ceiling)):
            if multipliers.max(initial=0.0) < 0.999 * box or box > BOX:
                break
            box *= 16.0
    return Dual(climb.best, climb.bound, _best_repaired(knapsack, climb))


class _Climb:
    """The cuts so far, the best multipliers and the selections met on the way."""

    def __init__(self, knapsack: Knapsack) -> None:
        self.knapsack = knapsack
        rows = len(knapsack.limits)
        self.best, self.bound = np.zeros(rows), -np.inf
        self.best_picks = knapsack.values.argmin(axis=1)
        self.cuts: list[tuple[float, Floats]] = []
        self.met: list[Ints] = []
        self.seen: set[bytes] = set()
        heavy = np.where(knapsack.open[:, :, None], knapsack.weights, np.inf)
        for row in range(rows):
            self._cut(heavy[:, :, row].argmin(axis=1))
        self._cut(np.where(knapsack.open, heavy.sum(axis=2), np.inf).argmin(axis=1))
        self.visit(self.best)

    def visit(self, multipliers: Floats) -> bool:
        """Evaluate L there, remember its selection as a cut, and say whether that is a new one.

        Where it is not, the cuts already give L exactly and the climb in the box has ended.
        """
        knapsack = self.knapsack
        priced = knapsack.values + knapsack.weights @ multipliers
        picks = priced.argmin(axis=1)
        chosen = priced[knapsack.sites, picks]
        level = float(chosen.sum() - multipliers @ knapsack.limits)
        level -= SAFETY * float(np.abs(chosen).sum() + multipliers @ np.abs(knapsack.limits))
        if level > self.bound:
            self.bound, self.best, self.best_picks = level, multipliers, picks
        return self._cut(picks)

    def next_multipliers(self, box: float) -> tuple[float, Floats]:
        """Maximise the least of all cuts in the box: the upper bound on L, and where it is."""
        from scipy.optimize import linprog

        rows = len(self.knapsack.limits)
        if rows == 0:
            return self.bound, np.zeros(0)
        levels = np.array([level for level, _ in self.cuts])
        slopes = np.array([slope for _, slope in self.cuts])
        answer = linprog(
            np.append(np.zeros(rows), -1.0),
            A_ub=np.column_stack((-slopes, np.ones(len(levels)))),
            b_ub=levels,
            bounds=[(0.0, box)] * rows + [(None, None)],
            method="highs-ds",
        )
        if answer.x is None:
            return self.bound, self.best
        return float(answer.x[-1]), np.clip(answer.x[:-1], 0.0, box)

    def _cut(self, picks: Ints) -> bool:
        if (key := picks.tobytes()) in self.seen:
            return False
        self.seen.add(key)
        slope = self.knapsack.totals(picks) - self.knapsack.limits
        self.cuts.append((self.knapsack.value(picks), slope))
        if self.knapsack.fits(picks):
            self.met.append(picks)
        return True


def _best_repaired(knapsack: Knapsack, climb: _Climb) -> Ints | None:
    """Improve the best selection met that fits and the repaired one of the best multipliers."""
    starts = sorted(climb.met, key=knapsack.value)[:1]
    priced = knapsack.values + knapsack.weights @ climb.best
    repaired = repair(knapsack, priced, climb.best_picks)
    if repaired is not None:
        starts.append(repaired)
    found = [improve(knapsack, picks) for picks in starts]
    return min(found, key=knapsack.value) if found else None


def repair(knapsack: Knapsack, priced: Floats, picks: Ints) -> Ints | None:
    """Change one site at a time until all rows fit: least priced loss per violation removed.

    `priced` (sites, choices): values plus priced weights. None when no single change helps.
    """
    picks, limits = picks.copy(), knapsack.limits
    totals = knapsack.totals(picks)
    for _ in range(4 * len(picks) + 4):
        if knapsack.fits(picks):
            return picks
        moved = knapsack.weights - knapsack.weights[knapsack.sites, picks][:, None, :]
        excess = np.maximum(totals + moved - limits, 0.0).sum(axis=2)
        removed = np.maximum(totals - limits, 0.0).sum() - excess
        loss = priced - priced[knapsack.sites, picks][:, None]
        useful = knapsack.open & (removed > 1e-15)
        if not useful.any():
            return None
        price = np.where(useful, (loss + 1e-12) / np.where(useful, removed, 1.0), np.inf)
        site, choice = np.unravel_index(int(price.argmin()), price.shape)
        picks[site] = choice
        totals = knapsack.totals(picks)
    return None


def improve(knapsack: Knapsack, picks: Ints) -> Ints:
    """Take the single change that lowers the value most and still fits, until there is none."""
    picks = picks.copy()
    room = knapsack.limits - knapsack.totals(picks)
    for _ in range(2 * len(picks) + 4):
        gain = knapsack.values[knapsack.sites, picks][:, None] - knapsack.values
        sites, choices = np.nonzero(gain > 1e-15)
        moved = knapsack.weights[sites, choices] - knapsack.weights[sites, picks[sites]]
        fitting = np.all(moved <= room, axis=1)
        if not fitting.any():
            return picks
        sites, choices = sites[fitting], choices[fitting]
        best = int(gain[sites, choices].argmax())
        picks[sites[best]] = choices[best]
        room = knapsack.limits - knapsack.totals(picks)
    return picks
