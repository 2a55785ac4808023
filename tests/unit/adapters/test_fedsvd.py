"""Golden identities of FedSVD, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.unit.adapters.single import scatter, single
from tnc.adapters.factors import pair
from tnc.adapters.following import follow
from tnc.adapters.methods.fedsvd import FedSVD, refactored


def test_refactoring_keeps_the_product_and_makes_factors_orthogonal() -> None:
    one = single(FedSVD(rank=3, every=1))
    scatter(one.adapters)
    y = one.adapters.model(one.x)
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.0)
    followed = follow(one.adapters, optimizer)
    one.backward()
    optimizer.step()
    b, a = (t.detach() for t in pair(one.delta))
    assert torch.allclose(one.adapters.model(one.x), y, rtol=0, atol=1e-12)
    assert torch.allclose(a @ a.T, torch.eye(3).double(), rtol=0, atol=1e-12)
    gram = b.T @ b
    assert torch.allclose(gram, gram.diag().diag(), rtol=0, atol=1e-12)
    values = torch.linalg.svdvals(b @ a)[:3]
    assert torch.allclose(gram.diag().sqrt(), values, rtol=0, atol=1e-12)
    assert followed.events == [(1, "weight", "refactored")]


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_the_gradient_and_first_moments_turn_with_the_factors(lost: int) -> None:
    """`g_B' = g_B (A A'^T)` exactly, also where B has lost ranks or is zero."""
    one = single(FedSVD(rank=3, every=1))
    scatter(one.adapters)
    one.delta.cores["B"].data[:, :lost] = 0.0
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.0, momentum=0.9)
    follow(one.adapters, optimizer)
    one.backward()
    core = one.delta.cores["B"]
    before = pair(one.delta)[1].detach().clone()
    gradient = core.grad.clone()
    optimizer.step()
    after = pair(one.delta)[1].detach()
    turn = before @ after.T
    assert torch.allclose(turn @ turn.T, torch.eye(3).double(), rtol=0, atol=1e-12)
    moment = optimizer.state[core]["momentum_buffer"]
    one.backward()
    assert torch.allclose(core.grad, gradient @ turn, rtol=0, atol=1e-10)
    assert torch.allclose(moment, core.grad, rtol=0, atol=1e-10)
    assert lost == 3 or not torch.allclose(moment, gradient, rtol=0, atol=1e-6)


def test_dropped_moments_start_anew() -> None:
    one = single(FedSVD(rank=3, every=2, moments="dropped"))
    optimizer = torch.optim.Adam(one.adapters.parameters(), lr=1e-2)
    followed = follow(one.adapters, optimizer)
    for _ in range(2):
        one.backward()
        optimizer.step()
    assert not optimizer.state[one.delta.cores["B"]]
    assert followed.events[0][2].startswith("refactored; state dropped: B")
    one.backward()
    optimizer.step()


def test_a_is_not_trained_and_the_start_is_exact() -> None:
    one = single(FedSVD(rank=3))
    assert torch.equal(one.weight(), one.base)
    assert [tuple(p.shape) for p in one.adapters.parameters()] == [(9, 3)]
    b, a, _ = refactored(torch.zeros(9, 3).double(), torch.eye(3, 7).double())
    assert torch.allclose(a @ a.T, torch.eye(3).double(), atol=1e-12)
    assert not b.any()
