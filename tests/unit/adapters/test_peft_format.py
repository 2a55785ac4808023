"""The format of PEFT, without PEFT: names, factors, refusals, and that nothing is silent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tnc
from tnc.adapters import export_peft, import_peft
from tnc.adapters.peft.cutting import cut
from tnc.adapters.peft.naming import anchored, is_target, looked_up, target_expression
from tnc.errors import ArtifactError, TncError
from tnc.net import Structure, parse_network
from tnc.nn import LinearView

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(6, 6)
        self.xq = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.xq(torch.tanh(self.q(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(6, 6)
        self.enc = Block()
        self.dec = Block()
        self.head = nn.Linear(6, 3)
        self.xhead = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.xhead(self.head(self.dec(self.enc(self.q(x)))))


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def tuned(
    method: str = "lora{rank=2}", **options: object
) -> tuple[nn.Module, tnc.adapters.Adapters]:
    torch.manual_seed(0)
    model = Net().eval()
    found = tnc.adapt(model, method, example=X, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model, found


def test_names_match_what_is_meant_alone() -> None:
    paths = [path for path, _ in Net().named_modules() if path]
    for chosen in (["q"], ["enc.q", "dec.xq"], ["enc.q", "q"]):
        config = {"target_modules": target_expression(chosen)}
        assert [path for path in paths if is_target(config, path)] == sorted(
            chosen, key=paths.index
        )
        ranks = {anchored(path): number for number, path in enumerate(chosen)}
        told = [looked_up(ranks, path, -1) for path in paths]
        assert told == [chosen.index(path) if path in chosen else -1 for path in paths]


def test_lists_match_by_their_ends_and_layers() -> None:
    config = {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": "layers"}
    assert is_target({"target_modules": ["q"]}, "enc.q")
    assert not is_target({"target_modules": ["q"]}, "enc.xq")
    assert is_target(config, "model.layers.1.q") and not is_target(config, "model.layers.2.q")
    assert not is_target({"target_modules": ["q"], "exclude_modules": ["enc.q"]}, "enc.q")
    assert not is_target({"target_modules": ["q"], "modules_to_save": ["head"]}, "head.q")


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("B[o r] A[r i] : i -> o | i=8 o=6 r=2", 2),
        ("B[o r]! R[r s] A[s i]! : i -> o | i=8 o=6 r=2 s=3", 2),
        ("U[o r]! z[r] V[r i]! : i -> o | i=8 o=6 r=3", 3),
        ("P[a r] Q[b r] A[r i] : i -> (a b) | i=8 a=2 b=3 r=3", 3),
        ("B[o a b] C[a c] D[b d] A[c d i] : i -> o | i=8 o=6 a=2 b=1 c=2 d=2", 2),
        ("L[a i] M[b j] : (i j) -> (a b) | i=4 j=2 a=2 b=3", None),
    ],
)
def test_structures_are_cut_where_they_are_thinnest(text: str, rank: int | None) -> None:
    structure = Structure.of(parse_network(text))
    layer = tnc.StructuredLayer.initialised(structure, LinearView(), std=1.0)
    found = cut(structure, layer.tensors())
    if rank is None:
        assert found is None
        return
    assert found is not None and found.rank == rank
    assert torch.allclose(found.dense(), layer.weight, atol=1e-5)


def test_ranks_that_gates_closed_are_left_out() -> None:
    structure = Structure.of(parse_network("B[o r] g[r] A[r i] : i -> o | i=8 o=6 r=4"))
    layer = tnc.StructuredLayer.initialised(structure, LinearView(), std=1.0)
    with torch.no_grad():
        layer.cores["g"][1:3] = 0
    found = cut(structure, layer.tensors())
    assert found is not None and found.rank == 2
    assert torch.allclose(found.dense(), layer.weight, atol=1e-6)


def test_ranks_and_scales_differ_by_weight(tmp_path: Path) -> None:
    rules = [
        {"match": "q", "method": "lora{rank=3, alpha=7}"},
        {"match": "enc.*", "method": "lora{rank=2}"},
        {"match": "dec.q", "method": "rslora{rank=2, alpha=4}"},
    ]
    model, found = tuned({"rules": rules})
    export_peft(found, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["r"] == 2 and config["rank_pattern"] == {"^q": 3}
    assert config["init_lora_weights"] is True and config["use_rslora"] is False
    assert set(config["alpha_pattern"]) == {"^q", "^dec\\.q"}
    again = import_peft(model, tmp_path)
    again.model.eval()
    assert torch.allclose(again.model(X), found.model(X), atol=1e-6)
    with safe_open(tmp_path / TENSORS, "pt") as file:
        told = json.loads(file.metadata()["tnc"])
    assert told["tnc"] == tnc.__version__ and set(told["methods"]) == set(found.deltas())


def test_heads_that_end_alike_are_all_written(tmp_path: Path) -> None:
    model, found = tuned(match=["q", "enc.*"], train="head")
    made = export_peft(found, tmp_path)
    assert "xhead" in made.notes[0]
    keys = load_file(tmp_path / TENSORS)
    assert {"base_model.model.head.weight", "base_model.model.xhead.bias"} <= set(keys)
    again = import_peft(model, tmp_path)
    assert torch.allclose(again.model(X), found.model(X), atol=1e-6)


def test_a_trained_module_must_not_hold_an_adapter(tmp_path: Path) -> None:
    _, found = tuned(match="enc.q", train="enc.xq.weight")
    export_peft(found, tmp_path / "fine")
    _, found = tuned(match="enc.q", train="enc.scale")
    with pytest.raises(ArtifactError, match="has an adapter"):
        export_peft(found, tmp_path / "not")
    assert not (tmp_path / "not").exists()


def test_what_is_no_product_is_refused_or_stated(tmp_path: Path) -> None:
    _, found = tuned("dora{rank=2}", match=["q", "head"])
    exported = export_peft(found, tmp_path / "dora")
    assert exported.error < 1e-5
    assert json.loads((tmp_path / "dora" / CONFIG).read_text())["use_dora"] is True
    _, found = tuned("sara{threshold=0.3}", match=["q"])
    with pytest.raises(ArtifactError, match="no product") as error:
        export_peft(found, tmp_path / "dense")
    assert "rank=" in str(error.value) and "merge" in str(error.value)
    near = export_peft(found, tmp_path / "near", rank=1)
    assert 0 < near.error < 1 and near.rows[0].rank == 1


@pytest.mark.parametrize("what", ["missing", "extra", "prefix", "shape"])
def test_tensors_that_do_not_fit_are_named(what: str, tmp_path: Path) -> None:
    model, found = tuned(match=["q", "enc.q"])
    export_peft(found, tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    key = "base_model.model.enc.q.lora_A.weight"
    if what == "missing":
        del tensors[key]
    if what == "extra":
        tensors["base_model.model.enc.q.lora_C.weight"] = torch.zeros(1)
    if what == "prefix":
        tensors["enc.q.lora_A.weight"] = tensors.pop(key)
    if what == "shape":
        tensors[key] = torch.zeros(2, 5)
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(TncError, match=r"enc\.q"):
        import_peft(model, tmp_path)


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    _, found = tuned(match="q")
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ArtifactError, match="holds no adapter"):
        export_peft(found, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"
