"""Leading parts of `W = P L D U`, permutations folded in: columns of L, pivots, rows of U."""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.errors import PlanError

GROWTH = 1e4
"""How many times its pivot an entry of a row may be before the pivot counts as tiny."""

Slices = tuple[Tensor, Tensor, Tensor]


def in_rows(matrix: Tensor, rank: int, name: str) -> Slices:
    """Return `P L (m, rank)`, `D (rank,)` and `U (rank, n)` with partial pivoting.

    Raises PlanError for a tiny pivot among the first `rank`; `name` says of what.
    """
    packed, swaps = torch.linalg.lu_factor_ex(matrix)[:2]
    pivots, rows = packed.diagonal()[:rank], packed.triu()[:rank]
    largest = packed.diagonal().abs().max()
    noise = max(matrix.shape) * torch.finfo(matrix.dtype).eps * largest
    tiny = (pivots.abs() <= noise) | (pivots.abs() * GROWTH < rows.abs().amax(1))
    if bool(tiny.any()):
        place = int(tiny.nonzero()[0])
        raise PlanError(
            f"pivot {place + 1} of {name} is {float(pivots[place]):.2g}, entries of its row are up "
            f"to {float(rows[place].abs().max()):.2g} and pivots up to {float(largest):.2g}",
            where=name,
            hint="take pivoting=complete, a smaller rank, or svfit",
        )
    lower = packed[:, :rank].tril(-1)
    lower.diagonal().fill_(1)
    sorted_rows = torch.empty_like(lower)
    sorted_rows[_order(swaps.tolist(), len(matrix))] = lower
    return sorted_rows, pivots, rows / pivots[:, None]


def _order(swaps: list[int], count: int) -> list[int]:
    """Return the row of the matrix that each row of L U is, from exchanges counted from one."""
    order = list(range(count))
    for place, other in enumerate(swaps):
        order[place], order[other - 1] = order[other - 1], order[place]
    return order


def completely(matrix: Tensor, rank: int) -> Slices:
    """Return `P L (m, rank)`, `D (rank,)` and `U Q (rank, n)`, every pivot the largest entry left.

    Takes `rank` steps of m n. Where nothing but rounding is left, pivots are zero and rows and
    columns are unit vectors of places not yet used.
    """
    rest = matrix.clone()
    lower, upper = matrix.new_zeros(len(matrix), rank), matrix.new_zeros(rank, matrix.shape[1])
    pivots = matrix.new_zeros(rank)
    free = [torch.ones(size, dtype=torch.bool, device=matrix.device) for size in matrix.shape]
    noise = max(matrix.shape) * torch.finfo(matrix.dtype).eps * matrix.abs().max()
    for step in range(rank):
        row, column = divmod(int(rest.abs().argmax()), matrix.shape[1])
        if bool(rest[row, column].abs() > noise):
            pivots[step] = rest[row, column]
            lower[:, step], upper[step] = rest[:, column] / pivots[step], rest[row] / pivots[step]
            rest -= pivots[step] * torch.outer(lower[:, step], upper[step])
            rest[row], rest[:, column] = 0, 0
        else:
            row, column = (int(places.nonzero()[0]) for places in free)
            lower[row, step], upper[step, column] = 1, 1
        free[0][row], free[1][column] = False, False
    return lower, pivots, upper
