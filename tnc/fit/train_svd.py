"""Tensor trains by sequential SVD."""

from __future__ import annotations

from itertools import pairwise
from math import prod

from torch import Tensor

from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.modes import equalised, joint, merge, own_legs, shaped, walk
from tnc.fit.sequential_svd import train_svd
from tnc.net import Network


class TrainSVD(DirectFit):
    """`W = G1[legs1 r1] G2[r1 legs2 r2] ...`: any chain of cores, whatever legs hang on them.

    Within the square root of the number of bonds of the optimum (Oseledets, 2011).
    """

    name = "train-svd"
    takes_complex = True
    order = 4

    def refuses(self, network: Network) -> str:
        path = walk(network, closed=False)
        return path if isinstance(path, str) else ""

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        path = walk(network, closed=False)
        assert not isinstance(path, str)  # accepted
        bonds = [joint(network, a, b) for a, b in pairwise(path)]
        ranks = [prod(network.size[n] for n in group) for group in bonds]
        found = {}
        parts = train_svd(merge(folded, network, path), ranks)
        for core, before, after, tensor in zip(path, [(), *bonds], [*bonds, ()], parts):
            axes = (*before, *own_legs(network, core), *after)
            found[core.name] = shaped(tensor, network, core, axes)
        return Outcome(equalised(network, found))


fits.register(TrainSVD.name)(TrainSVD())
