"""Truncated SVD of a weight whose one bond parts outputs from inputs."""

from __future__ import annotations

from torch import Tensor

from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.pair import pair_of, solve_pair
from tnc.net import Network


class SVD(DirectFit):
    """`W = B A`: the optimum in any two-sided metric.

    With roots S_G, S_C of the moments, `S_G^T W S_C = U s V^T` is cut at the rank and carried back
    (Eckart and Young, 1936; whitened as in Wang et al., SVD-LLM, 2024, without their Cholesky).
    """

    name = "svd"
    aware = "both"
    order = 0

    def refuses(self, network: Network) -> str:
        pair = pair_of(network)
        if isinstance(pair, str):
            return pair
        if pair.batch:
            return f"both cores carry leg {pair.batch[0]}"
        sides = [set(network.equation.output_indices), set(network.equation.input_indices)]
        if set(pair.legs[0]) not in sides:
            return "the two cores do not part outputs from inputs"
        return ""

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        pair = pair_of(network)
        assert not isinstance(pair, str)  # accepted
        return solve_pair(folded, network, pair)


fits.register(SVD.name)(SVD())
