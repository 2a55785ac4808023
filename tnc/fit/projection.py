"""Best approximation of a matrix in a two-sided metric, by projection on the smaller side.

With m <= n, `min ||sqrt(G) (W - W') sqrt(C)||` at rank r is `W' = S^-1 U_r U_r^T S W`, where
`S S = G` and U holds the eigenvectors of `S W C W^T S`. Only m x m matrices are decomposed, C is
never inverted or rooted: it may be singular, and at full rank W' is W whatever U is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.fit.metric import Metric, Moment

SEEN = 1e-10
"""Share of the mean moment that unseen directions weigh: they are fitted as the plain weight."""


def project(matrix: Tensor, metric: Metric) -> tuple[Tensor, Tensor, Tensor]:
    """Return `left (m, k)`, `right (k, n)` and the squared errors that each component saves.

    `left[:, :r] @ right[:r]` is the best approximation of rank r; k = min(m, n). Components are in
    descending order, their signs fixed by the largest entry.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, left, squares = _rows(matrix.T, metric.moment("inputs"), metric.moment("outputs"))
        return left.T, right.T, squares
    return _rows(matrix, metric.moment("outputs"), metric.moment("inputs"))


def _rows(matrix: Tensor, near: Moment | None, far: Moment | None) -> tuple[Tensor, Tensor, Tensor]:
    weighed = _weigh(matrix, far) @ matrix.T
    root, back = near.whitener if near is not None else (None, None)
    if root is None or back is None:
        values, vectors = torch.linalg.eigh(_symmetric(weighed))
        left, onto = vectors, vectors.T
    elif root.ndim == 1:
        values, vectors = torch.linalg.eigh(_symmetric(root[:, None] * weighed * root))
        left, onto = back[:, None] * vectors, vectors.T * root
    else:
        values, vectors = torch.linalg.eigh(_symmetric(root @ weighed @ root))
        left, onto = back @ vectors, vectors.T @ root
    left, onto, values = left.flip(1), onto.flip(0), values.flip(0).clamp_min(0)
    top = left.abs().argmax(0, keepdim=True)
    sign = torch.where(left.gather(0, top) < 0, -1.0, 1.0).to(left.dtype)
    return left * sign, (onto * sign.T) @ matrix, values


def _weigh(matrix: Tensor, moment: Moment | None) -> Tensor:
    """Return `matrix C`, unseen directions weighed a little."""
    if moment is None:
        return matrix
    given = moment.given
    if given.ndim == 1:
        return matrix * (given.clamp_min(0) + SEEN * given.mean())
    return matrix @ given + SEEN * given.diagonal().mean() * matrix


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
