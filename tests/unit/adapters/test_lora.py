"""LoRA and rsLoRA: formula, start and factor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tests.unit.adapters.starts import drawn, near, parts_of, site_of
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.methods.rslora import RsLoRA
from tnc.errors import PlanError


def test_output_is_that_of_the_formula() -> None:
    net = nn.Sequential(nn.Linear(9, 7)).double()
    x = drawn(5, 9)
    for spec, factor in (("lora{rank=4, alpha=6}", 1.5), ("rslora{rank=4, alpha=6}", 3.0)):
        tuned = tnc.adapt(net, spec, example=x)
        assert torch.equal(tuned.model(x), net(x))
        cores = tuned.deltas()["0.weight"].cores
        with torch.no_grad():
            cores["B"] += drawn(7, 4)
        added = factor * (x @ cores["A"].T) @ cores["B"].T
        assert near(tuned.model(x), net(x) + added)
        assert not near(tuned.model(x), net(x) + 1.01 * added, 1e-4)


def test_factors() -> None:
    site = site_of(20, 20)
    assert LoRA(rank=4).factor(site) == 1.0 and RsLoRA(rank=4).factor(site) == 2.0
    assert RsLoRA(rank=16, alpha=8).factor(site) == 2.0
    assert LoRA(rank=16, alpha=8, stabilised=True).factor(site) == 2.0


@pytest.mark.parametrize("method", [LoRA, RsLoRA])
def test_start_is_that_of_the_library_s_linear_layer(method: type[LoRA]) -> None:
    wide = parts_of(method(rank=50), drawn(60, 400)).cores["A"]
    assert float(wide.abs().max()) <= 400**-0.5
    assert abs(float(wide.std()) / (3 * 400) ** -0.5 - 1) < 0.02
    kernel = parts_of(method(rank=8), drawn(60, 10, 3, 3)).cores["A"]
    assert kernel.shape == (8, 10, 3, 3)
    assert 0.95 < float(kernel.abs().max()) * 90**0.5 <= 1
    stack = parts_of(method(rank=8), drawn(5, 60, 100), site_of(5, 60, 100, outputs=2)).cores["A"]
    assert 0.95 < float(stack.abs().max()) * 10 <= 1


def test_start_of_an_embedding() -> None:
    cores = parts_of(LoRA(rank=8), drawn(300, 60), site_of(300, 60, op="embedding")).cores
    assert abs(float(cores["A"].std()) - 1) < 0.1 and not cores["B"].any()


def test_messages() -> None:
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"alpha": -1.0}, {"dropout": 1.0}):
        with pytest.raises(PlanError, match=next(iter(wrong))):
            LoRA(**wrong)  # type: ignore[arg-type]
    assert "rank 9 is above 7" in LoRA(rank=9).refuses(site_of(9, 7))
