"""Operands that are made for inference are made once for all numbers of rows."""

from __future__ import annotations

import torch

from tnc.kernels.applied import Applied
from tnc.net import parse_network

NETWORK = parse_network("A[o r] B[r s] C[s i] : i -> o | i=6 o=5 r=3 s=2")


def test_buckets_of_rows_share_operands_that_are_laid_alike() -> None:
    cores = {c.name: torch.randn(NETWORK.shape(c)) for c in NETWORK.equation.cores}
    weight = cores["A"] @ cores["B"] @ cores["C"]
    applied, seen = Applied(NETWORK), {}
    with torch.no_grad():
        for rows in (40, 100, 200):
            x = torch.randn(rows, 6)
            torch.testing.assert_close(applied(cores, x, None, False), x @ weight.T)
            ready = applied._ready[(rows - 1).bit_length(), False, torch.float32, False]
            assert ready.kept is not None
            for how, operand in zip(ready.lays, ready.kept.made):
                assert seen.setdefault(how, operand) is operand
    assert len(applied._laid) == len(seen)
    applied.forget()
    assert not len(applied._laid) and not any(r.kept for r in applied._ready.values())
