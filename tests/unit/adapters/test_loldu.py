"""LoLDU: the slices are those of a triangular decomposition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tests.unit.adapters.starts import best, drawn, near, parts_of, site_of
from tnc.adapters.methods.loldu import LoLDU
from tnc.adapters.triangular import completely, in_rows
from tnc.errors import PlanError

shapes = pytest.mark.parametrize("shape", [(12, 9), (9, 12), (9, 9)])


@shapes
def test_full_rank_is_the_weight(shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    for lower, pivots, upper in (in_rows(weight, 9, "w"), completely(weight, 9)):
        assert near((lower * pivots) @ upper, weight)
        assert not near((lower * pivots * 1.001) @ upper, weight, 1e-4)


@shapes
def test_rows_are_sorted_as_the_library_sorts_them(shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    p, low, u = torch.linalg.lu(weight)
    lower, pivots, upper = in_rows(weight, 4, "w")
    assert near(lower, (p @ low)[:, :4]) and near(pivots, u.diagonal()[:4])
    assert near(pivots[:, None] * upper, u[:4])
    cores = parts_of(LoLDU(rank=4), weight).cores
    assert torch.equal(cores["L"], lower) and torch.equal(cores["U"], upper)


def test_complete_pivoting_bounds_entries_and_comes_nearer() -> None:
    weight = drawn(24, 16)
    errors = {}
    for name, (lower, pivots, upper) in {
        "rows": in_rows(weight, 8, "w"),
        "complete": completely(weight, 8),
    }.items():
        errors[name] = float((weight - (lower * pivots) @ upper).norm() / weight.norm())
        if name == "complete":
            assert float(lower.abs().max()) <= 1 and float(upper.abs().max()) <= 1
    svd = float((weight - best(weight, 8)).norm() / weight.norm())
    assert svd < errors["complete"] < errors["rows"]


def test_tiny_pivots_are_refused_or_avoided() -> None:
    weight = torch.tensor([[1e-9, 1.0, 0.5], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0]]).double()
    with pytest.raises(PlanError, match=r"pivot 1 of fc.weight is 1e-09.*(?s:.*)complete"):
        parts_of(LoLDU(rank=2), weight)
    lower, pivots, upper = completely(weight, 3)
    assert near((lower * pivots) @ upper, weight)
    deficient = drawn(6, 2) @ drawn(2, 5, seed=1)
    with pytest.raises(PlanError, match="pivot 3"):
        parts_of(LoLDU(rank=3), deficient)
    for matrix in (deficient, torch.zeros(4, 5).double()):
        lower, pivots, upper = completely(matrix, 4)
        assert near((lower * pivots) @ upper, matrix) and bool(upper.isfinite().all())
        assert int(torch.linalg.matrix_rank(lower)) == 4 == int(torch.linalg.matrix_rank(upper))
        cores = parts_of(LoLDU(rank=4, pivoting="complete"), matrix).cores
        assert torch.equal(cores["L"], lower)


@pytest.mark.parametrize("pivoting", ["rows", "complete"])
def test_gradient_is_that_of_the_diagonal(pivoting: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(9, 7)).double(), drawn(5, 9)
    tuned = tnc.adapt(net, f"loldu{{rank=4, alpha=6, pivoting={pivoting}}}", example=x)
    assert torch.equal(tuned.model(x), net(x))
    net(x).square().sum().backward()
    tuned.model(x).square().sum().backward()
    gradient = net[0].weight.grad
    assert gradient is not None
    cores = tuned.deltas()["0.weight"].cores
    wanted = 1.5 * torch.stack([cores["L"][:, k] @ gradient @ cores["U"][k] for k in range(4)])
    (z,) = tuned.parameters()
    assert z.grad is not None and near(z.grad, wanted)
    with torch.no_grad():
        z += drawn(4)
    weight = net[0].weight.detach()
    make = completely(weight, 7) if pivoting == "complete" else in_rows(weight, 7, "w")
    lower, pivots, upper = make
    pivots = pivots.clone()
    pivots[:4] += 1.5 * z.detach()
    assert near(tuned.weight("0.weight"), (lower * pivots) @ upper)


def test_experts_and_kernels() -> None:
    weight = drawn(3, 6, 8)
    cores = parts_of(LoLDU(rank=2), weight, site_of(3, 6, 8, op="experts", outputs=2)).cores
    for e in range(3):
        lower, _, upper = in_rows(weight[e], 2, "w")
        assert torch.equal(cores["L"][e], lower) and torch.equal(cores["U"][e], upper)
    assert parts_of(LoLDU(rank=2), drawn(6, 4, 3, 3)).cores["U"].shape == (2, 4, 3, 3)
