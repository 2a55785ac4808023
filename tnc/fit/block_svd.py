"""One truncated SVD a block: block tensor trains, Monarch, block-diagonal low rank."""

from __future__ import annotations

from torch import Tensor

from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.pair import pair_of, solve_pair
from tnc.net import Network


class BlockSVD(DirectFit):
    """`W[o1 o2, i1 i2] = sum_r L[o1 o2 i2 r] R[o2 i1 i2 r]`, and any two cores that share legs.

    For each value of the shared legs the weight is a matrix of rank r, so the optimum is an SVD of
    every block (Dao et al., Monarch, 2022). A metric couples the blocks: the start takes its
    diagonal blocks, alternating least squares the rest.
    """

    name = "block-svd"
    order = 1

    def refuses(self, network: Network) -> str:
        pair = pair_of(network)
        if isinstance(pair, str):
            return pair
        return "" if pair.batch else "the two cores share no leg, there is one block only"

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        pair = pair_of(network)
        assert not isinstance(pair, str)  # accepted
        return solve_pair(folded, network, pair)


fits.register(BlockSVD.name)(BlockSVD())
