"""Operands that are made for inference are made once, and anew where a core changes."""

from __future__ import annotations

import torch

from tnc.kernels.applied import Laid
from tnc.kernels.costs import merge
from tnc.kernels.operands import Lay, lay
from tnc.net import parse_network

NETWORK = parse_network("A[o r] B[r s] C[s i] : i -> o | i=6 o=5 r=3 s=2")


def test_laid_operands_are_shared_and_fresh() -> None:
    cores = {c.name: torch.randn(NETWORK.shape(c)) for c in NETWORK.equation.cores}
    merged = Lay(("A", "B"), merge(NETWORK, ("A", "B"), ("o", "s")), (0, 1), (5, 2))
    turned = Lay(("C",), None, (1, 0), (6, 2))
    laid = Laid()
    first = [laid.operand(how, cores) for how in (merged, turned)]
    again = [laid.operand(how, cores) for how in (merged, turned)]
    assert all(one is other for one, other in zip(first, again))
    cores["A"].mul_(2)
    third = laid.operand(merged, cores)
    assert third is not first[0] and laid.operand(turned, cores) is first[1]
    torch.testing.assert_close(third, lay(merged, cores))
    cores["A"].data.mul_(2)
    torch.testing.assert_close(laid.operand(merged, cores), lay(merged, cores))
    cores["B"] = torch.randn(3, 2)
    torch.testing.assert_close(laid.operand(merged, cores), lay(merged, cores))
