"""LoRA-XS: R between singular vectors of the weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tests.unit.adapters.starts import best, drawn, near, parts_of, site_of
from tnc.adapters.methods.lora_xs import LoRAXS
from tnc.errors import PlanError


def test_zero_is_the_base_and_the_identity_adds_the_best_part() -> None:
    weight = drawn(9, 12)
    cores = parts_of(LoRAXS(rank=3), weight).cores
    assert not cores["R"].any()
    assert near(cores["B"] @ torch.eye(3).double() @ cores["A"], best(weight, 3))
    assert near(cores["B"].T @ cores["B"], torch.eye(3).double())


def test_outputs_are_exactly_those_of_the_base() -> None:
    net, x = nn.Linear(7, 6), drawn(4, 7).float()
    wrapped = nn.Sequential(net)
    tuned = tnc.adapt(wrapped, "lora-xs{rank=2}", example=x)
    assert torch.equal(tuned.model(x), wrapped(x))
    assert [p.shape for p in tuned.parameters()] == [(2, 2)]


@pytest.mark.parametrize("alpha", [None, 16.0])
def test_gradient_of_the_core(alpha: float | None) -> None:
    net = nn.Sequential(nn.Linear(7, 6)).double()
    x = drawn(4, 7)
    net(x).square().sum().backward()
    gradient = net[0].weight.grad
    assert gradient is not None
    method = LoRAXS(rank=2, alpha=alpha)
    tuned = tnc.adapt(net, method, example=x)
    tuned.model(x).square().sum().backward()
    cores = tuned.deltas()["0.weight"].cores
    wanted = (alpha or 2) / 2 * cores["B"].T @ gradient @ cores["A"].T
    assert near(cores["R"].grad, wanted)  # type: ignore[arg-type]
    assert cores["B"].grad is None and cores["A"].grad is None


def test_start_of_the_paper() -> None:
    weight = drawn(60, 50)
    core = parts_of(LoRAXS(rank=40, std=1e-5), weight).cores["R"]
    assert abs(float(core.std()) / 1e-5 - 1) < 0.1
    assert abs(float(core.mean())) < 1e-6
    with pytest.raises(PlanError, match="std is -1"):
        LoRAXS(std=-1)


def test_experts_and_kernels() -> None:
    weight = drawn(3, 6, 8)
    cores = parts_of(LoRAXS(rank=2), weight, site_of(3, 6, 8, op="experts", outputs=2)).cores
    assert near(cores["B"] @ cores["A"], best(weight, 2)) and cores["R"].shape == (3, 2, 2)
    kernel = drawn(6, 4, 3, 3)
    cores = parts_of(LoRAXS(rank=2), kernel).cores
    assert cores["A"].shape == (2, 4, 3, 3)
    assert near(cores["B"] @ cores["A"].reshape(2, -1), best(kernel.reshape(6, -1), 2))
