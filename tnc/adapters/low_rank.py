"""Products of two matrices in the place of a weight's change, with the error said."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """`left @ right`, a map of all outputs (rows) and all inputs (columns).

    `left` has the shape (outputs, rank), `right` (rank, inputs); of a stack of experts both have
    the expert as first axis. `error` is the relative Frobenius error with respect to what it
    stands for.
    """

    left: Tensor
    right: Tensor
    error: float = 0.0

    @property
    def rank(self) -> int:
        """The bond between the two."""
        return int(self.left.shape[-1])

    def dense(self) -> Tensor:
        """Return the product."""
        return self.left @ self.right

    def swapped(self) -> LowRank:
        """Return the pair of the transposed map."""
        return LowRank(self.right.mT.contiguous(), self.left.mT.contiguous(), self.error)

    def widened(self, rank: int) -> LowRank:
        """Return the same product with a larger bond, filled with zeros."""
        more = rank - self.rank
        left = torch.cat((self.left, self.left.new_zeros(*self.left.shape[:-1], more)), -1)
        rows = self.right.new_zeros(*self.right.shape[:-2], more, self.right.shape[-1])
        return LowRank(left, torch.cat((self.right, rows), -2), self.error)


def nearest(matrix: Tensor, rank: int | None, energy: float | None) -> tuple[LowRank, float]:
    """Return the product nearest to a matrix, or to each of a stack, and the norm of what is given.

    It has rank `rank` at most, or the least that keeps the share `energy` of the squared norm;
    without either the rank that loses nothing.
    """
    return _truncated(torch.linalg.svd(matrix, full_matrices=False), rank, energy)


def nearest_of_product(
    b: Tensor, a: Tensor, rank: int | None, energy: float | None
) -> tuple[LowRank, float]:
    """Return what `nearest` does of `b @ a`, which is never made."""
    left, inner = torch.linalg.qr(b)
    right, outer = torch.linalg.qr(a.mH)
    u, s, v = torch.linalg.svd(inner @ outer.mH, full_matrices=False)
    return _truncated((left @ u, s, v @ right.mH), rank, energy)


def _truncated(
    svd: tuple[Tensor, Tensor, Tensor], rank: int | None, energy: float | None
) -> tuple[LowRank, float]:
    u, s, v = svd
    kept = _kept(s, rank, energy, u.shape[-2] + v.shape[-1])
    root = s[..., :kept].sqrt()
    whole = float(s.double().square().sum())
    lost = float(s[..., kept:].double().square().sum())
    left, right = u[..., :kept] * root.unsqueeze(-2), root.unsqueeze(-1) * v[..., :kept, :]
    return LowRank(left, right, (lost / whole) ** 0.5 if whole else 0.0), whole**0.5


def _kept(values: Tensor, rank: int | None, energy: float | None, size: int) -> int:
    """Return how many singular values are kept, at least 1; of a stack as many for every one."""
    largest = float(values.max()) if values.numel() else 0.0
    found = int((values > largest * size * torch.finfo(values.dtype).eps).sum(-1).max())
    if energy is not None:
        squares = values.double().square().flip(-1).cumsum(-1).flip(-1)
        most = (1 - energy) * squares[..., :1]
        found = min(found, int((squares > most + 1e-300).sum(-1).max()))
    return max(1, found if rank is None else min(rank, found))
