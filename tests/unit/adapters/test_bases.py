"""What adapters do with bases of few bits, of other kinds, and of values that are no numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.laws.adapters_data import method_of
from tnc.adapters import storing
from tnc.adapters.following import follow
from tnc.adapters.method import methods
from tnc.errors import ArtifactError, PlanError

IDS = torch.tensor([[1, 5, 2], [0, 3, 3]])


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(12, 8), nn.LayerNorm(8)
        self.conv, self.head = nn.Conv1d(8, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.norm(self.table(ids)).mT).mT
        y: Tensor = self.head(torch.relu(x))
        return y


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(methods.all()))
def test_layers_of_few_bits_stay_so(name: str, dtype: torch.dtype) -> None:
    if methods.get(name).needs:
        pytest.skip("its start needs calibration; what it adds is applied as others are")
    torch.manual_seed(0)
    model = Reader().to(dtype).train()
    try:
        tuned = tnc.adapt(model, method_of(name), example=IDS)
    except PlanError as error:
        pytest.skip(str(error))
    seen: dict[str, torch.dtype] = {}
    for path, layer in tuned.model.named_children():
        layer.register_forward_hook(
            lambda module, args, output, path=path: seen.__setitem__(path, output.dtype)
        )
    tuned.model(IDS).float().sum().backward()
    assert set(seen.values()) == {dtype}, seen
    with torch.no_grad():
        tuned.model.eval()
        before = tuned.model(IDS)
        tuned.merge()
        assert torch.allclose(tuned.model(IDS).float(), before.float(), atol=0.1)


def test_adapters_of_a_dense_base_are_not_put_beside_cores_and_back(tmp_path: Path) -> None:
    base, x = net(), torch.ones(2, 16)
    rules = [{"match": "*", "structure": "low-rank", "keep": 0.5}]
    small = tnc.compile(base, tnc.Spec(version=1, round_to=1, rules=rules), example=x).model
    storing.save(tnc.adapt(base, "lora{rank=2}", example=x), tmp_path / "dense")
    storing.save(tnc.adapt(small, "lora{rank=2}", example=x), tmp_path / "cores")
    with pytest.raises(ArtifactError, match=r"0.weight is made of cores .* was dense when"):
        storing.load(small, tmp_path / "dense")
    with pytest.raises(ArtifactError, match=r"0.weight is dense .* was made of cores when"):
        storing.load(base, tmp_path / "cores")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["pissa{rank=2}", "svfit{rank=2}", "lora-xs{rank=2}"])
def test_weights_that_are_no_numbers_are_named(method: str, value: float) -> None:
    base = net()
    base[2].weight.data[1, 1] = value
    with pytest.raises(PlanError, match=r"2.weight has entries that are not finite"):
        tnc.adapt(base, method, example=torch.ones(2, 16))


def test_saved_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    base, x = net(), torch.ones(2, 16)
    tuned = tnc.adapt(base, "lora{rank=2}", match="0", example=x)
    next(tuned.parameters()).data[0, 0] = float("nan")
    storing.save(tuned, tmp_path / "a")
    with pytest.raises(ArtifactError, match="not finite"):
        storing.load(base, tmp_path / "a")


def test_infinite_buffers_of_the_base_are_no_fault(tmp_path: Path) -> None:
    base, x = net(), torch.ones(2, 16)
    base.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    storing.save(tnc.adapt(base, "lora{rank=2}", match="0", example=x), tmp_path / "a")
    assert torch.equal(storing.load(base, tmp_path / "a").model(x), base(x))


def test_merged_adapters_are_not_followed() -> None:
    tuned = tnc.adapt(net(), "lora{rank=2}", match="0", train="2.*", example=torch.ones(2, 16))
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    tuned.merge()
    with pytest.raises(PlanError, match="merged"):
        follow(tuned, optimizer)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("method", ["svfit{rank=2}", "lora-xs{rank=2}", "lora-sb{rank=2}"])
def test_small_changes_are_exported_as_they_are(method: str, size: float, tmp_path: Path) -> None:
    base, x = net(), torch.ones(2, 16)
    tuned = tnc.adapt(
        base, method, match="0", calibration=[x], loss=lambda y, batch: y.square().mean()
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in tuned.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * size)
    (row,) = tnc.adapters.export_peft(tuned, tmp_path / "peft").rows
    assert row.error < 1e-6
    (_, delta), *_ = tuned.deltas().items()
    loaded = tnc.adapters.import_peft(base, tmp_path / "peft")
    (_, again), *_ = loaded.deltas().items()
    gap = ((again.dense() - delta.dense()).norm() / delta.dense().norm()).detach()
    assert float(gap) < 1e-6
