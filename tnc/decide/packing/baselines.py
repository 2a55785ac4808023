"""The paper's greedy core shapes: bang for buck, and greedy by energy alone."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from tnc.decide.packing.problem import CoreShape, Packing

Score = Callable[[float, int], float]
"""Rank a step by the energy that it gains and the parameters that it adds."""


def bang_for_buck(problem: Packing) -> CoreShape:
    """Raise, step by step, the rank with most energy per added parameter.

    score = a_n[R_n + 1] / (prod_{m != n} R_m + I_n)

    Ranks beyond the product of the others are then lowered and what that frees is spent the same
    way. Ties go to the first mode. Paper: Ghadiri et al., ICML 2023, section 5 (HOSVD B4B).

    >>> import numpy as np
    >>> a = np.array([4.0, 2.0, 1.0])
    >>> bang_for_buck(Packing((a, a, a), (3, 3, 3), 30)).ranks
    (2, 2, 2)
    """
    return _climb(problem, lambda energy, added: energy / added, "bang-for-buck")


def greedy(problem: Packing) -> CoreShape:
    """Raise, step by step, the rank with most energy, whatever it costs.

    score = a_n[R_n + 1]. Bounds and ties as in `bang_for_buck`.
    Paper: Ghadiri et al., ICML 2023, section 5 (HOSVD greedy).

    >>> import numpy as np
    >>> a = np.array([4.0, 2.0, 1.0])
    >>> greedy(Packing((a, a, a), (3, 3, 3), 30)).ranks
    (2, 2, 2)
    """
    return _climb(problem, lambda energy, added: energy, "greedy")


def _climb(problem: Packing, score: Score, solver: str) -> CoreShape:
    ranks = [size if mode in problem.fixed else 1 for mode, size in enumerate(problem.sizes)]
    _raise(problem, ranks, score, bounded=False)
    ranks = list(problem.clip(ranks))
    _raise(problem, ranks, score, bounded=True)
    return problem.shape(ranks, solver)


def _raise(problem: Packing, ranks: list[int], score: Score, *, bounded: bool) -> None:
    """Take best steps in place until none is left that fits the budget (and the bounds)."""
    entries, used = prod(ranks), problem.params(ranks)
    while True:
        best, chosen = -1.0, -1
        for mode in problem.free:
            rank = ranks[mode]
            others = entries // rank
            added = others + problem.sizes[mode]
            if rank >= problem.caps[mode] or used + added > problem.budget:
                continue
            if bounded and rank + 1 > others:
                continue
            gain = score(float(problem.spectra[mode][rank]), added)
            if gain > best:
                best, chosen = gain, mode
        if chosen < 0:
            return
        others = entries // ranks[chosen]
        used += others + problem.sizes[chosen]
        ranks[chosen] += 1
        entries = others * ranks[chosen]
