"""CorDA: the start is the part of the weight that inputs use most, or least."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.unit.adapters.starts import best, drawn, near, parts_of, site_of
from tnc.adapters.methods.corda import CorDA


def moment_of(size: int) -> torch.Tensor:
    x = drawn(40, size, seed=5) * torch.arange(1, size + 1)
    return x.T @ x / 40


@pytest.mark.parametrize("shape", [(9, 7), (7, 9)])
@pytest.mark.parametrize("part", ["principal", "minor"])
def test_is_the_paper_s_product(shape: tuple[int, int], part: Any) -> None:
    weight, moment = drawn(*shape), moment_of(shape[1])
    cores = parts_of(CorDA(rank=3, alpha=6.0, part=part), weight, moment=moment).cores
    left, values, right = torch.linalg.svd(weight @ moment, full_matrices=False)
    chosen = slice(None, 3) if part == "principal" else slice(-3, None)
    paper = left[:, chosen] * values[chosen] @ right[chosen] @ torch.linalg.inv(moment)
    assert near(2 * cores["B"] @ cores["A"], paper, 1e-8)
    assert not near(2 * cores["B"] @ cores["A"], best(weight, 3), 0.05)
    assert torch.equal(cores["B0"], -cores["B"]) and torch.equal(cores["A0"], cores["A"])
    assert near(cores["B"].norm(dim=0), cores["A"].norm(dim=1))


def test_a_singular_moment_is_safe() -> None:
    weight, x = drawn(7, 9), drawn(4, 9)
    cores = parts_of(CorDA(rank=2), weight, moment=x.T @ x).cores
    left, _, _ = torch.linalg.svd(weight @ x.T @ x)
    assert near(cores["B"] @ cores["A"], left[:, :2] @ left[:, :2].T @ weight, 1e-9)
    zero = parts_of(CorDA(rank=2), weight, moment=torch.zeros(9, 9).double()).cores
    assert all(bool(core.isfinite().all()) for core in zero.values())


def test_experts() -> None:
    weight, moment = drawn(3, 7, 6), moment_of(6)
    site = site_of(3, 7, 6, op="experts", outputs=2)
    cores = parts_of(CorDA(rank=2), weight, site, moment=moment).cores
    for e in range(3):
        one = parts_of(CorDA(rank=2), weight[e], moment=moment).cores
        assert near(cores["B"][e] @ cores["A"][e], one["B"] @ one["A"])
