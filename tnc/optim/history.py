"""A history of gradients as a ring of rows, and the damped inverse of their mean outer product.

With the rows of `G (k, d)` the last k gradients over all parameters, and the newest in row s,

    (damp I + G^T G / k)^-1 g = G^T c,    c = (damp I + G G^T / k)^-1 e_s,    g = G^T e_s.

So the newest gradient is preconditioned by a system of k unknowns, without a difference of large
numbers, as the formula of Woodbury has where `damp` is small. `G G^T` is the sum of what every
parameter's part of the rows gives; each parameter keeps its own, (k, k), as `products`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tnc.optim.joint import together
from tnc.optim.rule import Part

CLOCK = "clock"
"""The step of the whole rule in which a parameter's newest row was taken."""


def turn(parts: Sequence[Part], window: int) -> int:
    """Advance the clock of all parts and return the row that their gradients go to.

    Rows of steps in which a parameter had no gradient are made zero, so that a row is of one step.
    """
    now = max(int(part.state[CLOCK]) for part in parts) + 1
    for part in parts:
        missed = range(max(int(part.state[CLOCK]) + 1, now - window), now)
        for time in missed:
            forget(part, time % window)
        part.state[CLOCK] = now
    return now % window


def forget(part: Part, row: int) -> None:
    """Make one row of a parameter's history zero."""
    for slot in ("gradients", "values"):
        if slot in part.state:
            part.state[slot][row] = 0
    part.state["products"][row] = 0
    part.state["products"][:, row] = 0


def put_products(products: Tensor, row: int, found: Tensor) -> None:
    """Write the inner products of the newest row with all rows, (k,)."""
    products[row] = found
    products[:, row] = found


def coefficients(products: Sequence[Tensor], row: int, damping: float) -> Tensor:
    """Return c, (k,) in float64, such that `G^T c` is the preconditioned newest row.

    `products` are the parameters' parts of `G G^T`.
    """
    whole = together(products)
    k = len(whole)
    system = whole / k
    system.diagonal().add_(damping)
    unit = torch.zeros(k, dtype=torch.float64, device=whole.device)
    unit[row] = 1.0
    factor, failed = torch.linalg.cholesky_ex(system)
    if int(failed):  # rounding made it indefinite: damping below the rows' precision
        least: Tensor = torch.linalg.lstsq(system.cpu(), unit[:, None].cpu(), driver="gelsd")[0]
        return least[:, 0].to(system.device)
    found: Tensor = torch.cholesky_solve(unit[:, None], factor)[:, 0]
    return found
