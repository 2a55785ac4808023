"""Identities of GGPO's perturbation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.unit.adapters.single import scatter, single
from tnc.adapters.factors import pair
from tnc.adapters.following import follow
from tnc.adapters.methods.ggpo import GGPO, drawn
from tnc.errors import PlanError


def test_evaluation_and_merging_are_lora_exactly() -> None:
    one = single(GGPO(rank=2, sigma=1.0))
    scatter(one.adapters)
    b, a = pair(one.delta)
    plain = one.x @ one.base.T + (one.x @ a.T) @ b.T
    one.adapters.model.train()
    trained = one.adapters.model(one.x)
    assert not torch.allclose(trained, plain)
    assert torch.allclose(one.weight(), one.base + b @ a, rtol=0, atol=1e-13)
    one.adapters.merge()
    assert torch.allclose(one.adapters.model(one.x), plain, rtol=0, atol=1e-12)
    one.adapters.unmerge()
    one.adapters.model.eval()
    assert torch.allclose(one.adapters.model(one.x), plain, rtol=0, atol=1e-12)


def test_without_size_it_is_exact_in_training_too() -> None:
    one = single(GGPO(rank=2, sigma=0.0, beta=0.0))
    scatter(one.adapters)
    y = one.adapters.model(one.x)
    one.adapters.model.train()
    assert torch.equal(one.adapters.model(one.x), y)


@pytest.mark.parametrize("average", [0.0, 0.75])
def test_rows_have_the_deviation_of_the_formula(average: float) -> None:
    one = single(GGPO(rank=2, alpha=6.0, sigma=0.3, beta=0.02, average=average))
    scatter(one.adapters)
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=1e-3)
    follow(one.adapters, optimizer)
    b, a = (t.detach().clone() for t in pair(one.delta))
    one.backward()
    grads = [core.grad.clone() for core in (one.delta.cores["B"], one.delta.cores["A"])]
    whole = 3.0 * (b @ grads[1] + grads[0] @ a)
    optimizer.step()
    b, a = pair(one.delta)
    rows = ((3.0 * b @ a) ** 2).sum(1)
    mean = one.base.norm(dim=1).mean()
    guided = 0.02 * (1 - average) * (whole**2).sum(1)
    expected = (0.3 * (mean**2 + rows).sqrt() + guided) / 9**0.5
    size = one.delta.method.size(one.delta)
    assert torch.allclose(size, expected, rtol=1e-10, atol=0)
    samples = []
    for _ in range(300):
        one.delta.steps += 1
        samples.append(drawn(one.delta, size))
    found = torch.cat(samples, 1).std(1)
    assert torch.allclose(found, expected, rtol=0.06, atol=0)


def test_noise_follows_from_seed_and_step() -> None:
    """Passes of one step and recomputed passes see the same, another step something else."""
    one = single(GGPO(rank=2, sigma=0.5))
    model = one.adapters.model.train()
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.0)
    follow(one.adapters, optimizer, seed=1)
    first = model(one.x)
    assert torch.equal(model(one.x), first)
    assert torch.equal(checkpoint(model, one.x, use_reentrant=False), first)
    other = copy.deepcopy(one.adapters.model)
    assert torch.equal(other(one.x), first)
    one.backward()
    grads = [p.grad.clone() for p in one.adapters.parameters()]
    for parameter in one.adapters.parameters():
        parameter.grad = None
    (checkpoint(model, one.x, use_reentrant=False) * one.target).sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(one.adapters.parameters(), grads))
    optimizer.step()
    assert not torch.allclose(model(one.x), first)


def test_noise_has_no_gradient() -> None:
    one = single(GGPO(rank=2, sigma=0.5))
    scatter(one.adapters)
    b, a = (t.detach() for t in pair(one.delta))
    one.adapters.model.train()
    one.backward()  # the loss is linear, so its gradient is the unperturbed one
    assert torch.allclose(one.delta.cores["B"].grad, one.full @ a.T, rtol=0, atol=1e-11)
    assert torch.allclose(one.delta.cores["A"].grad, b.T @ one.full, rtol=0, atol=1e-11)


def test_bad_options() -> None:
    with pytest.raises(PlanError, match="sigma"):
        GGPO(sigma=-1.0)
