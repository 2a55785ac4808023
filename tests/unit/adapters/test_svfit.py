"""SVFit: singular values are trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tests.unit.adapters.starts import drawn, near, parts_of, site_of
from tnc.adapters.methods.svfit import SVFit


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_gradient_is_that_of_the_singular_values(alpha: float | None) -> None:
    net = nn.Sequential(nn.Linear(9, 7)).double()
    x = drawn(5, 9)
    net(x).square().sum().backward()
    gradient = net[0].weight.grad
    assert gradient is not None
    tuned = tnc.adapt(net, SVFit(rank=4, alpha=alpha), example=x)
    assert torch.equal(tuned.model(x), net(x))
    tuned.model(x).square().sum().backward()
    left, _, right = torch.linalg.svd(net[0].weight.detach(), full_matrices=False)
    wanted = (alpha or 4) / 4 * (left.T @ gradient @ right.T).diagonal()[:4]
    (z,) = tuned.parameters()
    assert z.grad is not None and near(z.grad, wanted, 1e-10)


def test_is_lora_with_the_values_folded_in() -> None:
    net = nn.Sequential(nn.Linear(9, 7)).double()
    tuned = tnc.adapt(net, "svfit{rank=4}", example=drawn(5, 9))
    (z,) = tuned.parameters()
    with torch.no_grad():
        z += drawn(4)
    weight = net[0].weight.detach()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    trained = torch.cat([values[:4] + z.detach(), values[4:]])
    assert near(tuned.weight("0.weight").detach(), (left * trained) @ right)
    b, a = (left[:, :4] * z.detach()), right[:4]
    assert near(tuned.weight("0.weight").detach(), weight + b @ a)


def test_full_rank_and_experts() -> None:
    assert not SVFit(rank=7).refuses(site_of(9, 7))
    assert SVFit(rank=8).refuses(site_of(9, 7))
    weight = drawn(3, 6, 8)
    cores = parts_of(SVFit(rank=6), weight, site_of(3, 6, 8, op="experts", outputs=2)).cores
    values = torch.linalg.svdvals(weight)
    assert near(cores["U"] * values[:, None] @ cores["V"], weight)
    assert cores["z"].shape == (3, 6)
