"""Tucker packing by the paper's integer programs: product and sum get a budget each."""

from __future__ import annotations

from itertools import product
from math import ceil, log

import numpy as np

from tnc.decide.allocation.highs import solve_binary
from tnc.decide.packing.problem import CoreShape, Packing, better
from tnc.errors import PlanError


def pack_program(problem: Packing, *, eps: float = 0.5, seconds: float = 60.0) -> CoreShape:
    """Solve Tucker packing approximately, by integer programs with two budgets.

    All shapes with ranks up to ceil(1/eps) are tried; then for k < log(c) / log(1 + eps) the
    budget c is split into ((1 + eps)^k, c - (1 + eps)^k) and its mirror for (product, sum), and
    each split is one program over binaries x_nj, "rank j in mode n":

    maximise sum prefix_n(j) x_nj,  sum_j x_nj = 1,
    sum x_nj log j <= log(product budget),  sum x_nj I_n j <= sum budget

    Ranks above the product of the others are lowered (no tensor loses by it); the best shape that
    is truly feasible is kept. `seconds` bounds each program. Raises PlanError for eps <= 0.
    Paper: Ghadiri et al., ICML 2023, section 4 (the PTAS, programs instead of knapsack oracles).

    >>> import numpy as np
    >>> a = np.array([4.0, 2.0, 1.0])
    >>> pack_program(Packing((a, a, a), (3, 3, 3), 30)).ranks
    (2, 2, 2)
    """
    if not eps > 0:
        raise PlanError(f"eps {eps} is not positive", where="pack_program", hint="try eps=0.5")
    best: CoreShape | None = None
    for ranks in _candidates(problem, eps, seconds):
        ranks = problem.clip(ranks)
        if not problem.why_not(ranks):
            shape = problem.shape(ranks, "program")
            best = shape if best is None or better(shape, best) else best
    assert best is not None, "all ranks 1 are always among the candidates"
    return best


def _candidates(problem: Packing, eps: float, seconds: float) -> list[tuple[int, ...]]:
    small = ceil(1 / eps)
    sides = [
        (size,) if mode in problem.fixed else range(1, min(small, problem.caps[mode]) + 1)
        for mode, size in enumerate(problem.sizes)
    ]
    found = list(product(*sides))
    for k in range(int(log(problem.budget) / log(1 + eps))):
        part = (1 + eps) ** k
        for entries, factors in ((part, problem.budget - part), (problem.budget - part, part)):
            ranks = _solve_split(problem, entries, factors, seconds)
            if ranks is not None:
                found.append(ranks)
    return found


def _solve_split(
    problem: Packing, entries: float, factors: float, seconds: float
) -> tuple[int, ...] | None:
    """Solve one program: product of ranks <= entries, sum of factors <= factors."""
    from scipy import sparse
    from scipy.optimize import LinearConstraint

    if entries < problem.whole or factors < sum(problem.sizes[mode] for mode in problem.free):
        return None
    if not problem.free:
        return problem.sizes
    lengths = [len(problem.spectra[mode]) for mode in problem.free]
    ranks = np.concatenate([np.arange(1, length + 1) for length in lengths])
    sizes = np.repeat([problem.sizes[mode] for mode in problem.free], lengths)
    gains = np.concatenate([problem.prefixes[mode][1:] for mode in problem.free])
    rows = sparse.csr_matrix(np.vstack((np.log(ranks), sizes * ranks)))
    members = np.repeat(np.arange(len(lengths)), lengths)
    one_hot = sparse.csr_matrix((np.ones(len(members)), (members, np.arange(len(members)))))
    answer = solve_binary(
        -gains,
        (
            LinearConstraint(rows, -np.inf, [log(entries / problem.whole), factors]),
            LinearConstraint(one_hot, 1, 1),
        ),
        seconds=seconds,
    )
    if answer.x is None:
        return None
    starts = np.cumsum([0, *lengths[:-1]])
    chosen = [
        int(np.argmax(answer.x[start : start + length])) + 1
        for start, length in zip(starts, lengths)
    ]
    full = list(problem.sizes)
    for mode, rank in zip(problem.free, chosen):
        full[mode] = rank
    return tuple(full)
