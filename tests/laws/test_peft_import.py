"""Checkpoints that PEFT wrote, and our own, are read beside equal weights."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.laws.adapters_data import CASES
from tests.laws.test_adapters import made, moved
from tnc.adapters import export_peft, import_peft
from tnc.adapters.method import methods
from tnc.errors import ArtifactError, TncError

peft = pytest.importorskip("peft")

FORMS: dict[str, dict[str, Any]] = {
    "lora": {"lora_alpha": 6},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "patterns": {"rank_pattern": {"0": 4}, "alpha_pattern": {"2": 3}},
    "bias": {"bias": "all"},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.conv = nn.Conv1d(8, 6, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.table(x).transpose(1, 2)).transpose(1, 2)
        return self.head(self.body(y)).mean(1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def trained(model: nn.Module, **options: Any) -> Any:
    """Return PEFT's model with other values in all that it trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, **options)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return found


X = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("form", sorted(FORMS))
def test_forms_of_lora(form: str, tmp_path: Path) -> None:
    model = net()
    theirs = trained(model, target_modules=["body.0", "body.2"], **FORMS[form])
    with torch.no_grad():
        y = theirs(X)
    theirs.save_pretrained(tmp_path)
    ours = import_peft(model, tmp_path)
    assert torch.allclose(ours.model(X), y, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(X), y, rtol=1e-3, atol=1e-3)
    plain = ours.unload()
    assert torch.allclose(plain(X), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bases", ["sparse", "very-sparse"])
def test_random_bases_are_drawn_as_peft_draws_them(bases: str, tmp_path: Path) -> None:
    """The share and the size of entries, also where the layers have other shapes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(900, 64), nn.Linear(64, 100))
    config = peft.RandLoraConfig(
        r=16, target_modules=["0", "1"], sparse=bases == "sparse", very_sparse=bases != "sparse"
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    own = theirs.base_model.randlora_A["default"], theirs.base_model.randlora_B["default"]
    method = f"randlora{{rank=16, order=peft, bases={bases}}}"
    deltas = tnc.adapt(model, method, example=torch.randn(2, 900)).deltas()
    ours = [deltas["0.weight"].cores[name].detach() for name in "AB"]
    for peer, mine in zip(own, ours):
        shares = [float((bases != 0).float().mean()) for bases in (peer, mine)]
        assert shares[1] == pytest.approx(shares[0], rel=0.2)
        assert float(mine.max()) == pytest.approx(float(peer.max()), rel=0.1)
    theirs.save_pretrained(tmp_path)
    again = import_peft(model, tmp_path)
    assert {delta.method.bases for delta in again.deltas().values()} == {bases}


@pytest.mark.parametrize("bases", ["uniform", "sparse", "very-sparse"])
def test_randlora_both_ways(bases: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 7)).eval()
    x = torch.randn(5, 10)
    method = f"randlora{{rank=3, order=peft, bases={bases}}}"
    ours = tnc.adapt(model, method, example=x)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    export_peft(ours, tmp_path / "ours")
    y = ours.model(x)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    assert torch.allclose(theirs(x), y, rtol=1e-5, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = import_peft(model, tmp_path / "theirs")
    assert torch.allclose(again.model(x), y, rtol=1e-5, atol=1e-5)
    first, second = (delta.cores["A"] for delta in again.deltas().values())
    memory = first.untyped_storage().data_ptr()
    assert memory == second.untyped_storage().data_ptr()
    paper = tnc.adapt(model, "randlora{rank=3}", example=x)
    with pytest.raises(ArtifactError, match="no product"):
        export_peft(paper, tmp_path / "paper")


def test_every_kind_of_layer_and_a_head(tmp_path: Path) -> None:
    model = net()
    theirs = trained(model, target_modules=["table", "conv", "0"], modules_to_save=["head"])
    theirs.save_pretrained(tmp_path)
    ours = import_peft(model, tmp_path)
    assert torch.allclose(ours.model(X), theirs(X), rtol=1e-5, atol=1e-5)
    assert not torch.equal(ours.model.head.weight, model.head.weight)
    assert {"head.weight", "head.bias"} <= {name for name, _ in ours.named_parameters()}
    export_peft(ours, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "again").eval()
    assert torch.allclose(again(X), theirs(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "dora", "lora-ga"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_reads_what_it_writes(method: str, case: str, tmp_path: Path) -> None:
    if method not in methods.all():
        pytest.skip("not there")
    model, x, adapters = made(method, case, torch.float32)
    moved(adapters)
    try:
        export_peft(adapters, tmp_path, out_proj_times=2)
    except ArtifactError as error:
        assert "PEFT has no form" in str(error) or "cannot scale" in str(error)
        pytest.skip(str(error).splitlines()[0])
    again = import_peft(model, tmp_path, out_proj_times=2)
    y = adapters.model(x)
    assert torch.allclose(again.model(x), y, rtol=1e-5, atol=1e-5 * float(y.detach().abs().max()))
    if case == "tied":
        assert len(list(again.parameters())) == 2
        plain = again.unload()
        assert plain.head.weight is plain.table.weight
        assert torch.allclose(plain(x), y, rtol=1e-5, atol=1e-5 * float(y.detach().abs().max()))


def changed(folder: Path, **settings: Any) -> Path:
    config = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"use_qalora": True}, "use_qalora"),
        ({"a_new_option": "x"}, "a_new_option"),
        ({"r": 3}, "rank 2"),
        ({"target_modules": ["body.0"]}, "body.2"),
        ({"target_modules": ["body.0", "body.2", "head"]}, "head"),
        ({"init_lora_weights": "lora_ga"}, "initial="),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"modules_to_save": ["head"]}, "head"),
    ],
)
def test_nothing_is_silent(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    model = net()
    trained(model, target_modules=["body.0", "body.2"]).save_pretrained(tmp_path)
    import_peft(model, tmp_path)
    with pytest.raises(TncError, match=told):
        import_peft(model, changed(tmp_path, **settings))


def test_tensors_without_a_place_are_named(tmp_path: Path) -> None:
    model = net()
    trained(model, target_modules=["body.0", "body.2"]).save_pretrained(tmp_path)
    other = nn.Sequential(nn.Linear(6, 8))
    with pytest.raises(ArtifactError, match=r"no module 'body'"):
        import_peft(other, tmp_path)
    with pytest.raises(ArtifactError, match=r"adapter_config\.json"):
        import_peft(model, tmp_path / "nothing")
