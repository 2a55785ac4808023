"""States that adapters can be in when they are saved, loaded, added to, moved or followed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnc
from tnc.errors import ArtifactError, BindError, CaptureError, PlanError

X = torch.linspace(-1, 1, 40).reshape(5, 8)


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def adapted(model: nn.Module, method: str = "lora{rank=2}", **given: Any) -> tnc.adapters.Adapters:
    found = tnc.adapt(model, method, **({"example": X} | given))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return found


def test_buffers_that_training_changed_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    tuned = adapted(model, match="0", train="1")
    tuned.model.train()
    for _ in range(5):
        tuned.model(3 * X + 5)
    y = tuned.model.eval()(X)
    tnc.adapters.save(tuned, tmp_path / "a")
    again = tnc.adapters.load(model, tmp_path / "a")
    assert torch.equal(again.model.eval()(X), y)
    assert not torch.allclose(model.eval()(X), y)


def test_a_second_adapter_finds_weights_beside_one_that_scales_rows() -> None:
    tuned = adapted(net(), "dora{rank=2}", name="a", match="0")
    tnc.adapt_(tuned.model, "lora{rank=2}", name="b", example=X)
    assert list(tuned.deltas("b")) == ["0.weight", "2.weight"]
    assert tuned.active == {"a": 1.0, "b": 1.0}


def test_merged_models_take_no_adapters_and_move_whole(tmp_path: Path) -> None:
    tuned = adapted(net(), name="a")
    tnc.adapters.save(tuned, tmp_path / "a")
    tuned.merge()
    with pytest.raises(PlanError, match="merged"):
        tnc.adapters.load_(tuned.model, tmp_path / "a")
    assert tuned.model.double()(X.double()).dtype == torch.float64


def test_writes_that_count_no_version_are_seen() -> None:
    model = net()
    tuned = adapted(model, "dora{rank=2}")
    tuned.model(X)
    for parameter in model.parameters():
        parameter.data.copy_(parameter.detach() * 0.25)
    assert torch.equal(tuned.model(X), copy.deepcopy(tuned.model)(X))


def test_convolutions_take_one_image_without_a_batch() -> None:
    x = torch.randn(1, 3, 2, 5)
    tuned = adapted(nn.Sequential(nn.Conv2d(3, 2, 1)), example=x)
    assert torch.allclose(tuned.model(x[0]), tuned.model(x)[0], atol=1e-6)


def test_what_was_trained_beside_is_checked_and_saved_whatever_its_name(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.task_adapters_ = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.task_adapters_(self.fc(x))

    model = Named()
    tuned = adapted(model, match="fc", train="task_adapters_")
    tnc.adapters.save(tuned, tmp_path / "a")
    assert torch.equal(tnc.adapters.load(model, tmp_path / "a").model(X), tuned.model(X))
    model.task_adapters_ = nn.Linear(8, 7)
    with pytest.raises(ArtifactError, match=r"task_adapters_.weight has shape \(7, 8\)"):
        tnc.adapters.load(model, tmp_path / "a")


@pytest.mark.parametrize("form", ["tnc", "peft"])
def test_another_head_is_not_replaced_in_silence(form: str, tmp_path: Path) -> None:
    """Heads are saved, loaded and exchanged with PEFT; two of them do not fit one model."""
    from tnc.adapters.peft.importing import import_peft_

    def stored(found: tnc.adapters.Adapters, name: str) -> None:
        if form == "peft":
            tnc.adapters.export_peft(found, tmp_path / name)
        else:
            tnc.adapters.save(found, tmp_path / name)

    def put(model: nn.Module, name: str) -> tnc.adapters.Adapters:
        if form == "peft":
            return import_peft_(model, tmp_path / name, name)
        return tnc.adapters.load_(model, tmp_path / name)

    model, outputs = net(), {}
    for name in ("a", "b", "c"):
        tuned = adapted(model, match="0", train=() if name == "c" else "2", name=name)
        if name == "b":
            with torch.no_grad():
                tuned.model[2].bias += 1
        stored(tuned, name)
        outputs[name] = tuned.model(X)
    held = put(copy.deepcopy(model), "a")
    assert torch.allclose(held.model(X), outputs["a"], atol=1e-6)
    trained = [name for name, _ in held.named_parameters() if name.startswith("2.")]
    assert trained == ["2.weight", "2.bias"]
    before = copy.deepcopy(held.model.state_dict())
    with pytest.raises(ArtifactError, match=r"2.* is trained beside the adapters that are there"):
        put(held.model, "b")
    after = held.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    both = put(held.model, "c")
    both.use("a")
    assert torch.allclose(both.model(X), outputs["a"], atol=1e-6)


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_trained_beside_is_trained_after_unloading(compressed: bool) -> None:
    """As of PEFT's modules_to_save: merged weights are frozen, as the base was, heads are not."""
    model = net()
    if compressed:
        rules = [{"match": "0", "structure": "low-rank", "keep": 0.5}]
        model = tnc.compile(model, tnc.Spec(version=1, round_to=1, rules=rules), example=X).model
    tuned = adapted(model, match="0", train="2.*")
    y = tuned.model(X).detach()
    plain = tuned.unloaded()
    flags = {name: p.requires_grad for name, p in plain.named_parameters()}
    assert {name for name, trains in flags.items() if trains} == {"2.weight", "2.bias"}
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert torch.equal(tuned.model(X), y), "the adapted model is another one"
    again = {name: p.requires_grad for name, p in tuned.unload().named_parameters()}
    assert again == flags


def test_a_forward_that_a_copy_would_share_is_refused() -> None:
    model = net()
    old = model[0].forward
    model[0].forward = lambda x: old(x)
    with pytest.raises(CaptureError, match="forward was replaced"):
        tnc.adapt(model, "lora", example=X)


def test_a_taken_name_changes_nothing() -> None:
    model = net()
    tnc.adapt_(model, "lora{rank=2}", match="2", example=X)
    with pytest.raises(PlanError, match="named 'default'"):
        tnc.adapt_(model, "lora{rank=2}", example=X)
    assert list(tnc.adapters.of(model).deltas()) == ["2.weight"]


@pytest.mark.parametrize("name", ["kind", "active", "training", "a.b", "a/b", "", "_probe"])
def test_names_that_modules_need_are_refused(name: str) -> None:
    with pytest.raises(PlanError, match="cannot be named"):
        tnc.adapt(net(), "lora{rank=2}", name=name, example=X)


def test_an_adapter_saved_by_name_is_in_use_when_loaded(tmp_path: Path) -> None:
    tuned = adapted(net(), name="a")
    tnc.adapt_(tuned.model, "lora{rank=1}", name="b", example=X)
    tuned.use("b")
    tnc.adapters.save(tuned, tmp_path / "a", ["a"])
    assert tnc.adapters.load(net(), tmp_path / "a").active == {"a": 1.0}


def test_an_optimizer_is_followed_once() -> None:
    tuned = adapted(net())
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    followed = tnc.adapters.follow(tuned, optimizer)
    with pytest.raises(BindError, match="followed already"):
        tnc.adapters.follow(tuned, optimizer)
    followed.close()
    tnc.adapters.follow(tuned, optimizer)
