"""Sums of Kronecker products by the SVD of the rearranged weight."""

from __future__ import annotations

from torch import Tensor

from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.pair import pair_of, solve_pair
from tnc.net import Network


class VanLoan(DirectFit):
    """`W[o1 o2, i1 i2] = sum_k A[k o1 i1] C[k o2 i2]`, and any two cores that share no leg.

    Rearranged to `R[(o1 i1), (o2 i2)]` the best sum of k products is its truncated SVD (Van Loan
    and Pitsianis, 1993). No bond at all is one product.
    """

    name = "van-loan"
    order = 2

    def refuses(self, network: Network) -> str:
        pair = pair_of(network)
        if isinstance(pair, str):
            return pair
        return f"both cores carry leg {pair.batch[0]}" if pair.batch else ""

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        pair = pair_of(network)
        assert not isinstance(pair, str)  # accepted
        return solve_pair(folded, network, pair)


fits.register(VanLoan.name)(VanLoan())
