"""CP by alternating least squares with several starts."""

from __future__ import annotations

from torch import Tensor

from tnc.fit.canonical_pattern import canonical_cores, canonical_tensor, not_canonical
from tnc.fit.canonical_starts import decompose
from tnc.fit.method import DirectFit, Outcome, fits
from tnc.net import Network


class CPALS(DirectFit):
    """`W = sum_r a_r (x) b_r (x) ...` (Kolda and Bader, 2009, section 3.4).

    The least error that is found, at whatever norms; `cp-epc` tames components that cancel.
    """

    name = "cp-als"
    order = 6

    def refuses(self, network: Network) -> str:
        return not_canonical(network)

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        tensor, rank = canonical_tensor(folded, network)
        found = decompose(tensor, rank, seed)
        return Outcome(
            canonical_cores(found, network), found.sweeps, found.converged, found.remark()
        )


fits.register(CPALS.name)(CPALS())
