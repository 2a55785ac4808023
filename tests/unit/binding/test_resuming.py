"""A bound optimizer that is saved, loaded and goes on makes the bits of one that never stopped."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import tnc
from tnc.api import Compiled
from tnc.errors import ArtifactError
from tnc.optim import Together
from tnc.optim.rules.flora import Flora
from tnc.optim.rules.galore import GaLore
from tnc.optim.rules.muon import Muon
from tnc.optim.rules.shampoo import Shampoo

Optimizer = torch.optim.Optimizer
X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SPEC = tnc.Spec(
    version=1,
    rules=[
        {"match": "0", "structure": "tucker", "keep": 0.8},
        {"match": "3", "structure": "low-rank", "keep": 0.8},
        {"match": "*", "structure": "dense"},
    ],
)


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(128, 12, bias=False), nn.Tanh()).to(dtype)


def several(model: nn.Module) -> Optimizer:
    wide = [p for name, p in model.named_parameters() if name.startswith("3")]
    rest = [p for name, p in model.named_parameters() if not name.startswith("3")]
    return Together({"muon": Muon(wide, lr=1e-2), "adamw": torch.optim.AdamW(rest, lr=1e-2)})


def adamw(**options: object) -> Callable[[nn.Module], Optimizer]:
    return lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.3, **options)


MAKES: dict[str, Callable[[nn.Module], Optimizer]] = {
    "adamw": adamw(amsgrad=True, foreach=False),
    "foreach": adamw(foreach=True),
    "fused": adamw(fused=True),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9),
    "adafactor": lambda m: torch.optim.Adafactor(m.parameters(), lr=1e-2),
    "galore": lambda m: GaLore(m.parameters(), rank=2, update_every=3, weight_decay=0.3),
    "flora": lambda m: Flora(m.parameters(), rank=2, update_every=3, lr=1e-2),
    "shampoo": lambda m: Shampoo(m.parameters(), update_every=2, lr=1e-2, weight_decay=0.3),
    "together": several,
}


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(X.to(next(model.parameters()).dtype)).float() - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def begun(kind: str, dtype: torch.dtype) -> tuple[Compiled, Optimizer]:
    """Train, compile, bind; stop while cores that start anew still warm up."""
    model = net(dtype)
    optimizer = MAKES[kind](model)
    train(model, optimizer, 3)
    made = tnc.compile(model, SPEC, example=X.to(dtype))
    tnc.bind(model, made, optimizer, warmup=6)
    train(made.model, optimizer, 2)
    return made, optimizer


def blank(made: nn.Module) -> nn.Module:
    other = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(0.5)
    return other


def by_pickle(made: Compiled, optimizer: Optimizer, folder: Path, make) -> Callable:
    torch.save((made.model.state_dict(), optimizer.state_dict()), folder / "last.pt")

    def again() -> tuple[nn.Module, Optimizer]:
        model = blank(made.model)
        other = tnc.follow(make(model))
        weights, state = torch.load(folder / "last.pt", weights_only=True)
        model.load_state_dict(weights)
        other.load_state_dict(state)
        return model, other

    return again


def by_shards(made: Compiled, optimizer: Optimizer, folder: Path, make) -> Callable:
    weights, state = get_state_dict(made.model, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder, no_dist=True)

    def again() -> tuple[nn.Module, Optimizer]:
        model = blank(made.model)
        other = tnc.follow(make(model), model)
        weights, state = get_state_dict(model, other)
        read = {"model": weights, "optimizer": state}
        checkpoint.load(read, checkpoint_id=folder, no_dist=True)
        set_state_dict(
            model, other, model_state_dict=read["model"], optim_state_dict=read["optimizer"]
        )
        return model, other

    return again


def by_flat_shards(made: Compiled, optimizer: Optimizer, folder: Path, make) -> Callable:
    """The optimizer's own state_dict, read into that of a new one."""
    weights, state = made.model.state_dict(), optimizer.state_dict()
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder, no_dist=True)

    def again() -> tuple[nn.Module, Optimizer]:
        model = blank(made.model)
        other = tnc.follow(make(model), model)
        read = {"model": model.state_dict(), "optimizer": other.state_dict()}
        checkpoint.load(read, checkpoint_id=folder, no_dist=True)
        model.load_state_dict(read["model"])
        other.load_state_dict(read["optimizer"])
        return model, other

    return again


def by_artifact(made: Compiled, optimizer: Optimizer, folder: Path, make) -> Callable:
    tnc.save(made, folder / "made", optimizer=optimizer)

    def again() -> tuple[nn.Module, Optimizer]:
        model = tnc.load(folder / "made", model=net(), check=True)
        return model, tnc.load_optimizer(folder / "made", model, make(model))

    return again


STORES = [by_pickle, by_shards, by_flat_shards, by_artifact]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("store", STORES, ids=lambda store: store.__name__)
@pytest.mark.parametrize("kind", MAKES)
def test_it_goes_on_as_if_nothing_had_happened(kind, store, dtype, tmp_path) -> None:
    made, optimizer = begun(kind, dtype)
    again = store(made, optimizer, tmp_path, MAKES[kind])
    expected = train(made.model, optimizer, 7)
    model, other = again()
    assert train(model, other, 7) == expected
    for found, wanted in zip(model.parameters(), made.model.parameters(), strict=True):
        assert torch.equal(found, wanted) and found.dtype == dtype


def test_the_stores_can_fail(tmp_path) -> None:
    """Weights alone make another run: what is compared depends on the optimizer's state."""
    made, _ = optimizer = begun("adamw", torch.float32)
    again = by_pickle(*optimizer, tmp_path, MAKES["adamw"])
    expected = train(*[made.model, optimizer[1]], 7)
    model, _ = again()
    assert train(model, tnc.follow(MAKES["adamw"](model)), 7) != expected


def test_a_fused_step_reads_what_a_file_gave(tmp_path) -> None:
    """A file has no strides, and a fused step reads a kernel's state as the kernel lies."""
    made, optimizer = begun("fused", torch.float32)
    made.model.to(memory_format=torch.channels_last)
    tnc.save(made, tmp_path / "made", optimizer=optimizer)
    model = tnc.load(tmp_path / "made", model=net()).to(memory_format=torch.channels_last)
    other = tnc.load_optimizer(tmp_path / "made", model, MAKES["fused"](model))
    plain = copy.deepcopy(model)
    looped = tnc.load_optimizer(tmp_path / "made", plain, MAKES["fused"](plain))
    looped.param_groups[0].update(fused=False, foreach=False)
    assert model[1].weight.stride() != model[1].weight.contiguous().stride()
    assert other.state[model[1].weight]["exp_avg"].stride() == model[1].weight.stride()
    train(model, other, 3), train(plain, looped, 3)
    for found, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_artifact_names_what_it_holds(tmp_path) -> None:
    made, optimizer = begun("together", torch.float32)
    tnc.save(made, tmp_path / "made", optimizer=optimizer)
    with safe_open(tmp_path / "made" / "optimizer.safetensors", framework="pt") as file:
        keys = set(file.keys())
        told = json.loads(file.metadata()["optimizer"])
    assert {"3.cores.A/momentum_buffer", "0.cores.G/exp_avg", "1.weight/step"} <= keys
    assert told["class"] == "Together" and told["groups"][0]["options"]["part"] == "muon"
    assert told["state"]["0.cores.G"]["warm_left"] == 4
    assert (tmp_path / "made" / "optimizer.safetensors").name in tnc.artifact.Manifest.read(
        tmp_path / "made"
    ).files


WRONG = {
    "class": (lambda m: torch.optim.SGD(m.parameters()), "is of AdamW, the optimizer is SGD"),
    "fewer": (
        lambda m: torch.optim.AdamW(list(m.parameters())[1:]),
        r"0\.cores\.\w+ was in it when",
    ),
    "groups": (
        lambda m: torch.optim.AdamW([{"params": [p]} for p in m.parameters()]),
        r"group 0: 0\.cores",
    ),
    "other": (
        lambda m: torch.optim.AdamW(copy.deepcopy(m).parameters()),
        "not of the model",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_optimizer_is_refused_and_stays(wrong, tmp_path) -> None:
    made, optimizer = begun("adamw", torch.float32)
    tnc.save(made, tmp_path / "made", optimizer=optimizer)
    make, message = WRONG[wrong]
    model = tnc.load(tmp_path / "made", model=net())
    other = make(model)
    with pytest.raises(ArtifactError, match=message):
        tnc.load_optimizer(tmp_path / "made", model, other)
    assert not other.state and "decay_share" not in str(other.state_dict())


def test_what_cannot_be_saved_is_named_and_leaves_no_folder(tmp_path) -> None:
    made, optimizer = begun("adamw", torch.float32)
    optimizer.state[made.model[1].weight]["projector"] = object()
    with pytest.raises(ArtifactError, match="only pickle") as told:
        tnc.save(made, tmp_path / "made", optimizer=optimizer)
    assert told.value.where == "1.weight/projector"
    assert not (tmp_path / "made").exists()
    tnc.save(made, tmp_path / "made")
    with pytest.raises(ArtifactError, match="has no optimizer state"):
        tnc.load_optimizer(tmp_path / "made", made.model, optimizer)
    (tmp_path / "made" / "optimizer.safetensors").write_bytes(b"12345678")
    with pytest.raises(ArtifactError, match="cannot be read"):
        tnc.load_optimizer(tmp_path / "made", made.model, optimizer)
