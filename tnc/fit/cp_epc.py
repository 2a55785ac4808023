"""CP with error-preserving correction: no components that grow and cancel."""

from __future__ import annotations

from math import prod

from torch import Tensor

from tnc.fit.canonical_pattern import canonical_cores, canonical_tensor, not_canonical
from tnc.fit.canonical_starts import decompose, reaches_all
from tnc.fit.canonical_taming import tamed
from tnc.fit.method import DirectFit, Outcome, fits
from tnc.net import Network


class CPEPC(DirectFit):
    """`W = sum_r a_r (x) b_r (x) ...`, small `sum_r ||a_r||^2 ||b_r||^2 ..` (Phan et al., 2020).

    Alternating least squares as in `cp-als`; where components grow, they are made smaller at an
    error that is at most 0.1 % larger. The note tells the sensitivity that is left.
    """

    name = "cp-epc"
    order = 5

    def refuses(self, network: Network) -> str:
        return not_canonical(network)

    def complete(self, network: Network) -> bool:
        sizes = tuple(
            prod(network.shape(core)) // network.size[network.equation.bonds[0]]
            for core in network.equation.cores
        )
        return reaches_all(sizes, network.size[network.equation.bonds[0]])

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        tensor, rank = canonical_tensor(folded, network)
        found = tamed(tensor, decompose(tensor, rank, seed))
        return Outcome(
            canonical_cores(found, network), found.sweeps, found.converged, found.remark()
        )


fits.register(CPEPC.name)(CPEPC())
