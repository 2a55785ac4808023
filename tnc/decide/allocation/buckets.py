"""Least cost by total error: a dynamic program over error buckets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tnc.errors import InfeasibleBudget

ROUNDS = 6
"""How often the buckets are made finer, over the errors up to the best that was found."""


def cheapest_by_error(
    errors: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    limit: float,
    most: float,
    buckets: int = 10_000,
) -> tuple[tuple[int, ...], float]:
    """Return one pick a site, of the least total error at which the cost meets `limit`.

    table[site][b] = min over picks of table[site - 1][b - e(pick)] + cost(pick)

    e is the error in buckets of `most / buckets`, rounded up, so the errors of a selection never
    exceed its bucket. Also returns the true total. Raises InfeasibleBudget where no selection with
    an error up to `most` meets the limit. Source: L-GreCo, Alimohammadi et al., 2022.

    >>> cheapest_by_error([[0, 1, 3], [0, 1, 3]], [[10, 4, 2], [10, 4, 2]], 8, 6.0, 60)
    ((1, 1), 2.0)
    """
    width = most / buckets if most > 0 else 1.0
    table = np.zeros(buckets + 1)
    taken = np.zeros((len(errors), buckets + 1), dtype=np.int64)
    steps = [[int(np.ceil(error / width - 1e-9)) for error in row] for row in errors]
    for site, (row, prices) in enumerate(zip(steps, costs)):
        best = np.full(buckets + 1, np.inf)
        for pick, (step, price) in enumerate(zip(row, prices)):
            if step > buckets:
                continue
            reached = table[: buckets + 1 - step] + price
            better = reached < best[step:]
            best[step:][better] = reached[better]
            taken[site, step:][better] = pick
        table = best
    fitting = np.flatnonzero(table <= limit)
    if not len(fitting):
        raise InfeasibleBudget(
            f"no selection with an error up to {most:.4g} costs at most {limit:.6g}",
            where="l-greco",
            hint="raise the budget",
        )
    place = int(fitting[0])
    picks = [0] * len(errors)
    for site in reversed(range(len(errors))):
        picks[site] = int(taken[site, place])
        place -= steps[site][picks[site]]
    return tuple(picks), float(sum(row[pick] for row, pick in zip(errors, picks)))


def least_error(
    errors: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    limit: float,
    buckets: int = 10_000,
) -> tuple[int, ...]:
    """Return one pick a site of the least total error whose cost is at most `limit`.

    The range of errors is cut into finer `buckets` while that lowers the error. Raises
    InfeasibleBudget where no selection meets the limit.
    """
    margin = 1 + (len(errors) + 1) / buckets
    total = sum(max(row) for row in errors)
    picks, best = cheapest_by_error(errors, costs, limit, margin * total, buckets)
    for _ in range(ROUNDS):
        finer, found = cheapest_by_error(errors, costs, limit, margin * best, buckets)
        if found >= best:
            break
        picks, best = finer, found
    return picks
