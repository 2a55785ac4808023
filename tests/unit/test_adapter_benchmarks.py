"""The adapter benchmarks' own parts, on a small model: equal sizes, and training by any method."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from benchmarks.adapted import MOST, VARIANTS, sized, train
from tnc.adapters.method import methods


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 32))


X = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))


def test_every_method_has_the_size_of_lora_or_a_reason(net: nn.Module) -> None:
    found = sized(net, X[:2], "*", without=("original",))
    assert found.keys() == {*methods.all(), *VARIANTS}
    target = found["lora"].trained
    assert target == 2 * 4 * (32 + 48)
    for name, one in found.items():
        if one.method is None:
            assert one.reason, name
            continue
        assert 0 < one.trained <= MOST * target, name
    assert found["lora-xs"].trained == pytest.approx(target, rel=0.1)
    assert found["eora"].method is None and "original" in found["eora"].reason


def test_sparse_cores_count_what_they_store(net: nn.Module) -> None:
    method = tnc.adapt(net, "sara{share=0.25}", example=X[:2])
    held = sum(p.numel() for p in method.parameters())
    plan = tnc.adapters.plan(net, "sara{share=0.25}", example=X[:2])
    assert sum(entry.trained for entry in plan.entries) == held == 2 * 32 * 48 // 4


@pytest.mark.parametrize("name", ["lora", "lora-pro", "sora"])
def test_training_lowers_the_loss(net: nn.Module, name: str) -> None:
    one = sized(net, X[:2], "*")[name]
    assert one.method is not None
    adapters = tnc.adapt(net, one.method, example=X[:2])
    steps: list[int] = []
    losses = train(
        adapters,
        one.method,
        1e-2,
        8,
        lambda step: adapters.model(X).sub(1).square().mean(),
        steps.append,
    )
    assert steps == list(range(9))
    assert losses[-1] < losses[0]
