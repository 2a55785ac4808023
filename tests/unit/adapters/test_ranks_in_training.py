"""Ranks of deltas that change while they are trained: `tnc.adapt_ranks` on adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tnc
from tests.laws.adapters_data import compressed
from tnc.adapters import storing


@pytest.mark.parametrize("method", ["lora{rank=2}", "dora{rank=2}"])
def test_ranks_of_deltas_change(method: str, tmp_path: Path) -> None:
    """The layer, merging, export and files follow; the base is left alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6)).double()
    x, y = torch.randn(32, 12).double(), torch.randn(32, 6).double()
    tuned = tnc.adapt(net, method, example=x)
    adam = torch.optim.Adam(tuned.parameters(), lr=1e-2)
    ranks = tnc.adapt_ranks(tuned.model, "dlrt{tolerance=0.01}", adam)
    losses = []
    for _ in range(10):
        adam.zero_grad()
        loss = (tuned.model(x) - y).square().mean()
        loss.backward()
        ranks.step(loss.detach())
        losses.append(float(loss.detach()))
    ranks.close()
    assert losses[-1] < losses[0]
    found = {path.partition(".")[0]: dict(profile)["r"] for path, profile in ranks.ranks.items()}
    assert any(rank != 2 for rank in found.values())
    for name, delta in tuned.deltas().items():
        assert delta.cores["A"].shape[0] == found[name.partition(".")[0]]
    held = {id(p) for group in adam.param_groups for p in group["params"]}
    assert held == {id(p) for p in tuned.parameters()}
    outputs = tuned.model(x)
    storing.save(tuned, tmp_path / "a")
    again = storing.load(net, tmp_path / "a").model(x)
    assert torch.allclose(again, outputs, rtol=1e-10, atol=1e-12)
    tuned.merge()
    assert torch.allclose(tuned.model(x), outputs, rtol=1e-9, atol=1e-10)


def test_the_base_of_cores_is_left() -> None:
    model, x = compressed().double(), torch.randn(8, 12).double()
    tuned = tnc.adapt(model, "lora{rank=2}", example=x)
    adam = torch.optim.Adam(tuned.parameters(), lr=1e-2)
    ranks = tnc.adapt_ranks(tuned.model, "dlrt{tolerance=0.1}", adam)
    assert set(ranks.left) == {"0", "2"}
    assert all("adapters_" in path for path in ranks.ranks)
