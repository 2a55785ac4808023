"""Short lists of core shapes: what several solvers answer, and its rescoring by real fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from tnc.decide.packing.baselines import bang_for_buck, greedy
from tnc.decide.packing.energy import pack_by_energy
from tnc.decide.packing.exact import pack_exact
from tnc.decide.packing.problem import CoreShape, Floats, Packing

Solver = Callable[[Packing], CoreShape]

SOLVERS: tuple[Solver, ...] = (pack_exact, bang_for_buck, greedy)
"""What a short list asks when nothing else is said; `pack_program` is slower and never better."""


def shortlist(
    problem: Packing, *, core: Floats | None = None, solvers: Iterable[Solver] = SOLVERS
) -> tuple[CoreShape, ...]:
    """Collect the solvers' core shapes, each once, for rescoring by real fits.

    With the HOSVD `core`, the shape of least truncated-HOSVD error comes first. A shape that
    several solvers found keeps all their names, joined by "+". The optimum of the packing is not
    that of the Tucker decomposition, so no single answer is to be trusted.

    >>> import numpy as np
    >>> a = np.array([4.0, 2.0, 1.0])
    >>> [shape.solver for shape in shortlist(Packing((a, a, a), (3, 3, 3), 30))]
    ['exact+bang-for-buck+greedy']
    """
    found = [solver(problem) for solver in solvers]
    if core is not None:
        found.insert(0, pack_by_energy(core, problem.sizes, problem.budget, fixed=problem.fixed))
    merged: dict[tuple[int, ...], CoreShape] = {}
    for shape in found:
        known = merged.get(shape.ranks)
        if known is None:
            merged[shape.ranks] = shape
        elif shape.solver not in known.solver.split("+"):
            merged[shape.ranks] = replace(known, solver=f"{known.solver}+{shape.solver}")
    return tuple(merged.values())


def rescore(
    shapes: Iterable[CoreShape], evaluate: Callable[[tuple[int, ...]], float]
) -> tuple[CoreShape, ...]:
    """Replace each shape's error by `evaluate(ranks)` and order by it, best first.

    Ties: fewer parameters, then lower ranks. Unit: that of `evaluate`, by convention
    ||X - X'||^2 / ||X||^2.

    >>> one, two = CoreShape((1, 1), 5, 2.0, "exact"), CoreShape((2, 2), 12, 3.0, "greedy")
    >>> [shape.ranks for shape in rescore((one, two), lambda ranks: 1 / ranks[0])]
    [(2, 2), (1, 1)]
    """
    scored = (replace(shape, error=float(evaluate(shape.ranks))) for shape in shapes)
    return tuple(sorted(scored, key=lambda s: (s.error, s.params, s.ranks)))
