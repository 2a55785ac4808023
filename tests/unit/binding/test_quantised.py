"""torchao's optimizers of 8-bit state are bound as those that they quantise."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import nn

import tnc
from tnc.errors import ArtifactError
from tnc.optim.quantised import floats

X = torch.randn(16, 96, generator=torch.Generator().manual_seed(1))
Y = torch.randn(16, 128, generator=torch.Generator().manual_seed(2))
SPEC = tnc.Spec(version=1, rules=[{"match": "0", "structure": "low-rank", "keep": 0.95}])


@pytest.fixture
def quantised() -> Iterator[ModuleType]:
    found = pytest.importorskip("torchao.optim")
    with torch.compiler.set_stance("force_eager"):  # its step compiles itself
        yield found


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def begun(kind: type):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(96, 128))
    optimizer = kind(net.parameters(), lr=1e-3, weight_decay=0.1)
    train(net, optimizer, 5)
    return net, tnc.compile(net, SPEC, example=X), optimizer


@pytest.mark.parametrize("name, share", [("AdamW8bit", 0.5), ("Adam8bit", None)])
def test_moments_move_as_they_would_in_full(quantised, name, share) -> None:
    net, made, optimizer = begun(getattr(quantised, name))
    same, twin = copy.deepcopy(net), copy.deepcopy(made.model)
    kind = getattr(torch.optim, name.removesuffix("8bit"))
    exact = kind(same.parameters(), lr=1e-3, weight_decay=0.1)
    for old, new in zip(net.parameters(), same.parameters()):
        exact.state[new] = {k: floats(v).clone() for k, v in optimizer.state[old].items()}
    report = tnc.bind(net, made, optimizer, policy="pull").report
    tnc.bind(same, twin, exact, policy="pull")
    assert [line.deed for line in report.lines] == ["carried", "moved", "moved"]
    for core, blocks in (("A", False), ("B", True)):  # 52 x 96 is no whole number of blocks
        found = optimizer.state[made.model[0].cores[core]]
        wanted = exact.state[twin[0].cores[core]]
        assert (type(found["exp_avg"]) is not torch.Tensor) is blocks
        assert found.get("decay_share") == share and float(found["step"]) == 5
        for slot in ("exp_avg", "exp_avg_sq"):
            gap = floats(found[slot]) - wanted[slot]
            assert float(gap.norm()) <= 0.03 * float(wanted[slot].norm()), slot
    losses = train(made.model, optimizer, 10)
    assert losses[-1] < losses[0]
    dense = tnc.densify(made.model)
    tnc.bind(made.model, dense, optimizer)
    assert train(dense, optimizer, 5)[-1] < losses[-1]


def test_it_resumes_and_says_where_it_cannot_be_saved(quantised, tmp_path) -> None:
    net, made, optimizer = begun(quantised.AdamW8bit)
    tnc.bind(net, made, optimizer, policy="pull")
    file = io.BytesIO()
    torch.save((made.model.state_dict(), optimizer.state_dict()), file)
    again = copy.deepcopy(made.model)
    expected = train(made.model, optimizer, 4)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other = tnc.follow(quantised.AdamW8bit(again.parameters(), lr=1e-3, weight_decay=0.1))
    again.load_state_dict(weights)
    other.load_state_dict(state)
    assert train(again, other, 4) == expected
    with pytest.raises(ArtifactError, match="OptimState8bit"):
        tnc.save(made, tmp_path / "made", optimizer=optimizer)
