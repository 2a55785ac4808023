"""The gradient of an operand that a whole batch of products shares: a sum over the batch."""

from __future__ import annotations

from collections.abc import Mapping

from tnc.kernels.program import Matrix, Multiply, extent


def summed(back: Multiply) -> bool:
    """Whether an operand's gradient sums a batch of products."""
    return "b" in back.left.roles and "b" not in back.result.roles


def factors(back: Multiply) -> tuple[Matrix, Matrix]:
    """Return the factors as the product takes them: the one with the result's rows first."""
    first = back.result.roles[0] in back.left.roles
    return (back.left, back.right) if first else (back.right, back.left)


def flattened(back: Multiply, size: Mapping[str, int]) -> tuple[str, str]:
    """Return the orders of roles in which both factors are read as matrices of (batch, m) together.

    A factor whose memory has another order is copied: of the two ways to flatten, the one that
    copies less. `size` need not have the rows.
    """
    ways = []
    for flat in ("bm", "mb"):
        orders = [_order(matrix, flat) for matrix in factors(back)]
        copied = [
            extent(matrix.group(_own(matrix)), size)
            for matrix, order in zip(factors(back), orders)
            if order != matrix.roles
        ]
        ways.append((sum(copied), orders))
    first, second = min(ways, key=lambda way: way[0])[1]
    return first, second


def _order(matrix: Matrix, flat: str) -> str:
    """Return the roles with `flat` together, as they lie if they do, else with the longest runs."""
    if flat in matrix.roles:
        return matrix.roles
    own = _own(matrix)
    return flat + own if matrix.roles.endswith(own) else own + flat


def _own(matrix: Matrix) -> str:
    """Return the role that a factor shares with the result."""
    return next(role for role in matrix.roles if role not in "bm")
