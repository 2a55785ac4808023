"""Truncated SVD of a weight whose one bond parts outputs from inputs."""

from __future__ import annotations

from math import prod

from torch import Tensor
from torch.nn import functional

from tnc.fit.method import DirectFit, Outcome, fits, saturated
from tnc.fit.metric import Metric
from tnc.fit.modes import equalised
from tnc.fit.pair import assembled, pair_of, solve_pair
from tnc.fit.projection import project
from tnc.net import Network, Structure


class SVD(DirectFit):
    """`W = B A`: the optimum in any two-sided metric.

    In the plain norm the truncated SVD (Eckart and Young, 1936). In a metric, the projection of
    `projection.project`: the optimum of Wang et al., SVD-LLM, 2024, on both sides, without an
    inverse or a Cholesky factor of a moment that may be singular.
    """

    name = "svd"
    takes_complex = True
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

    def outcome(self, weight: Tensor, structure: Structure, metric: Metric, seed: int) -> Outcome:
        (term,) = structure.terms
        pair = pair_of(term)
        assert not isinstance(pair, str)  # accepted
        sides = (term.equation.output_indices, term.equation.input_indices)
        in_order = pair.legs in (sides, sides[::-1])
        direct = metric.plain or saturated(term) or structure.padded or not in_order
        if direct or weight.is_complex():
            return super().outcome(weight, structure, metric, seed)
        rank = prod(term.size[n] for n in pair.bonds)
        rows = prod(structure.signature.outputs)
        left, right, _ = project(weight.reshape(rows, -1), metric)
        left, right = left[:, :rank], right[:rank]
        if left.shape[1] < rank:
            missing = rank - left.shape[1]
            left = functional.pad(left, (0, missing))
            right = functional.pad(right, (0, 0, 0, missing))
        if pair.legs[0] != sides[0]:
            left, right = right.T, left.T
        return Outcome(equalised(term, assembled(term, pair, left, right)))

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        pair = pair_of(network)
        assert not isinstance(pair, str)  # accepted
        return solve_pair(folded, network, pair)


fits.register(SVD.name)(SVD())
