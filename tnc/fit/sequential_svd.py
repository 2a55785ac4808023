"""The sequential SVD of a tensor with one mode a core."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tnc.fit.pair import svd


def train_svd(tensor: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Return cores `[r_k, mode_k, r_k+1]`, r_0 = r_N = 1, with the inner `ranks` as given.

    Each unfolding is cut by SVD and the rest carried on: the squared error is at most the sum of
    the tails, so at most N - 1 times the optimum (Oseledets, 2011, algorithm 1 and theorem 2.2).
    Ranks beyond an unfolding are filled with zeros.
    """
    sizes = tuple(tensor.shape)
    cores, rest, before = [], tensor.reshape(1, -1), 1
    for size, rank in zip(sizes[:-1], ranks):
        u, s, v = svd(rest.reshape(before * size, -1))
        have = min(rank, s.shape[0])
        left = torch.nn.functional.pad(u[:, :have], (0, rank - have))
        cores.append(left.reshape(before, size, rank))
        rest = torch.nn.functional.pad(s[:have, None] * v[:have], (0, 0, 0, rank - have))
        before = rank
    cores.append(rest.reshape(before, sizes[-1], 1))
    return cores
