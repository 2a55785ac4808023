"""Call HiGHS through scipy without what its library prints."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.optimize import LinearConstraint, OptimizeResult

Floats = NDArray[np.float64]


def solve_binary(
    costs: Floats,
    constraints: Sequence[LinearConstraint],
    *,
    seconds: float,
    gap: float = 0.0,
    nodes: int | None = None,
) -> OptimizeResult:
    """Minimise costs . x over binary x, (n,), within linear constraints.

    `seconds`, `nodes`: limits on time and branching; `gap`: relative gap at which to stop.
    Raises nothing: the result's `status` and `x` (None without a solution) say how it went, as
    for `scipy.optimize.milp`.

    >>> from scipy.optimize import LinearConstraint
    >>> int(solve_binary(np.array([2.0, 1.0]), [LinearConstraint([[1, 1]], 1, 1)], seconds=1).fun)
    1
    """
    from scipy.optimize import Bounds, milp

    limits = {"time_limit": seconds, "mip_rel_gap": gap}
    if nodes is not None:
        limits["node_limit"] = nodes
    with _without_c_output():
        return milp(
            costs,
            integrality=np.ones(len(costs)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options=limits,
        )


@contextmanager
def _without_c_output() -> Iterator[None]:
    """Silence the C library's standard output for a while.

    HiGHS 1.12 leaves a debugging line ("HighsMipSolverData::transformNewIntegerFeasibleSolution")
    on standard output whatever its options say, which would break JSON printed there. Where the
    descriptor or the C library cannot be reached, nothing is done.
    """
    try:
        flush = ctypes.CDLL(None).fflush
        sys.stdout.flush()
        kept = os.dup(1)
    except (AttributeError, OSError, TypeError, ValueError):
        yield
        return
    try:
        flush(None)
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), 1)
        try:
            yield
        finally:
            flush(None)
            os.dup2(kept, 1)
    finally:
        os.close(kept)
