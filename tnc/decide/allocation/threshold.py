"""Least maximum error within budgets: search the threshold over the errors that occur."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tnc.decide.allocation.knapsack import Floats, Knapsack
from tnc.decide.allocation.solve import Answer, Effort, feasible, solve


def smallest_threshold(knapsack: Knapsack, effort: Effort) -> Answer:
    """Minimise the largest value of the picks within the limits, then their cost.

    min t  s.t. some selection with values <= t fits; bisection over the distinct values

    With one row the cheapest choice of each site decides; with more, cheapest per row rules
    thresholds out and a search for any selection that fits settles the rest. `bound` is the least
    value that was not proven too small; `picks` has the least sum of weight / limit.
    """
    knapsack, places = knapsack.compact(knapsack.undominated)
    answer = _search(knapsack, effort)
    if answer.picks is None:
        return answer
    return replace(answer, picks=places[knapsack.sites, answer.picks])


def _search(knapsack: Knapsack, effort: Effort) -> Answer:
    thresholds = np.unique(knapsack.values[knapsack.open])
    low = _first_possible(knapsack, thresholds)
    if low == len(thresholds):
        return Answer(None, np.inf, "threshold")
    if len(knapsack.limits) <= 1:
        return _settle(knapsack, float(thresholds[low]), float(thresholds[low]), effort)
    proven, high, known = low, len(thresholds), Answer(None, np.inf, "threshold")
    while low < high:
        middle = (low + high) // 2
        answer = feasible(_under(knapsack, float(thresholds[middle])), effort)
        if answer.picks is None:
            proven = max(proven, middle + 1) if answer.infeasible else proven
            low = middle + 1
        else:
            high, known = middle, answer
    if known.picks is None:
        return replace(known, bound=np.inf if proven == len(thresholds) else thresholds[proven])
    bound = float(thresholds[min(proven, high)])
    settled = _settle(knapsack, float(thresholds[high]), bound, effort)
    return settled if settled.picks is not None else replace(known, bound=bound)


def cheapest_under(knapsack: Knapsack, errors: Floats, bound: float) -> Knapsack:
    """Close every entry whose error, (sites, choices), exceeds the bound."""
    return knapsack.restrict(errors <= bound)


def _cost_of(knapsack: Knapsack) -> Knapsack:
    """Replace values by the sum of weight / limit, so that the cheapest is sought."""
    if not len(knapsack.limits):
        return knapsack
    rows = np.where(knapsack.limits != 0, np.abs(knapsack.limits), 1.0)
    cost = (knapsack.weights / rows).sum(axis=2)
    return Knapsack(np.where(knapsack.open, cost, np.inf), knapsack.weights, knapsack.limits)


def _under(knapsack: Knapsack, threshold: float) -> Knapsack:
    return _cost_of(cheapest_under(knapsack, knapsack.values, threshold))


def _settle(knapsack: Knapsack, threshold: float, bound: float, effort: Effort) -> Answer:
    """Find the cheapest selection at the threshold; equal costs go to the lower error."""
    answer = solve(_under(knapsack, threshold), effort)
    if answer.picks is None:
        return answer
    return Answer(answer.picks, bound, "threshold")


def _first_possible(knapsack: Knapsack, thresholds: Floats) -> int:
    """Bisect for the first threshold at which each row, taken alone, can be met."""
    low, high = int(np.searchsorted(thresholds, knapsack.values.min(axis=1).max())), len(thresholds)
    while low < high:
        middle = (low + high) // 2
        under = knapsack.values <= thresholds[middle]
        least = np.where(under[:, :, None], knapsack.weights, np.inf).min(axis=1).sum(axis=0)
        if np.all(least <= knapsack.limits + knapsack.rounding):
            high = middle
        else:
            low = middle + 1
    return low
