"""`tnc adapt --peft` writes for PEFT too; `tnc merge` takes what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import tnc
from tnc.adapters import import_peft, storing
from tnc.cli import main

HERE = "tests.unit.adapters.test_peft_commands"
SPEC = f"""
version: 1
model: {{kind: callable, function: "{HERE}:make"}}
adapters: {{rules: [{{match: "0", method: METHOD}}]}}
"""
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def make() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)), (X,)


class Attentive(nn.Module):
    """A model whose `out_proj` PEFT 0.21.2 adapts twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


Y = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2))


def make_attentive() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    return Attentive(), (Y,)


def spec(folder: Path, method: str, make: str = "make", match: str = "0") -> str:
    place = folder / "spec.yaml"
    text = SPEC.replace("METHOD", f'"{method}"').replace(":make", f":{make}")
    place.write_text(text.replace('"0"', f'"{match}"'))
    return str(place)


def source(make: str = "make") -> str:
    return f'callable{{function="{HERE}:{make}"}}'


@pytest.mark.parametrize(("option", "rank"), [("--peft-rank=2", 2), ("--peft-energy=0.9", None)])
def test_the_nearest_product_for_peft(
    option: str, rank: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peft = tmp_path / "p"
    given = ["adapt", spec(tmp_path, "randlora{rank=4}"), "--peft", str(peft), "--json"]
    assert main([*given, option]) == 0
    (row,) = json.loads(capsys.readouterr().out)["peft"]
    assert row["weights"] == 1
    config = json.loads((peft / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and (rank is None or config["r"] <= rank)


def test_attention_for_peft_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How often PEFT adds the delta of `out_proj` is said both ways."""
    theirs = pytest.importorskip("peft")

    folder, merged = tmp_path / "p", tmp_path / "m"
    given = ["adapt", spec(tmp_path, "pissa{rank=2}", "make_attentive", "*"), "--peft", str(folder)]
    assert main(given) == 2
    assert "--out-proj-times 2" in capsys.readouterr().err
    assert main([*given, "--out-proj-times", "2"]) == 0
    model = make_attentive()[0].eval()
    loaded = theirs.PeftModel.from_pretrained(make_attentive()[0], folder).eval()
    assert torch.allclose(loaded(Y), model(Y), atol=1e-5)
    capsys.readouterr()
    back = ["merge", source("make_attentive"), str(folder), "--out", str(merged)]
    assert main(back) == 2
    assert "--out-proj-times 2" in capsys.readouterr().err and not merged.exists()
    assert main([*back, "--out-proj-times", "2"]) == 0
    assert torch.allclose(tnc.load(merged)(Y), model(Y), atol=1e-5)


def test_what_says_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, peft = tmp_path / "a", tmp_path / "p"
    given = ["adapt", spec(tmp_path, "lora{rank=2}"), "--out", str(out)]
    for option in ("--peft-rank=2", "--peft-energy=0.5", "--out-proj-times=2"):
        assert main([*given, option]) == 2
        assert "give --peft FOLDER" in capsys.readouterr().err and not out.exists()
    for option, told in (("--peft-rank=0", "rank is 0"), ("--peft-energy=2", "energy is 2")):
        assert main([*given, "--peft", str(peft), option]) != 0
        assert told in capsys.readouterr().err and not out.exists()
    assert main(given) == 0
    for option in ("--out-proj-times=2", f"--initial={peft}"):
        assert main(["merge", source(), str(out), "--out", str(tmp_path / "m"), option]) == 2
        assert "are for checkpoints of PEFT" in capsys.readouterr().err


def test_merging_by_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make()[0].eval()
    tuned = tnc.adapt(model, "dora{rank=2}", match="0", name="first", example=X)
    tnc.adapters.adapt_(tuned.model, "lora{rank=2}", name="second", match="*", example=X)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.2
    storing.save(tuned, tmp_path / "a", probe=((X,), {}))
    given = ["merge", source(), str(tmp_path / "a"), "--out", str(tmp_path / "m")]
    assert main([*given, "--use", "first=0.5", "--use", "second"]) == 0
    tuned.use("second", first=0.5)
    assert torch.allclose(tnc.load(tmp_path / "m")(X), tuned.model(X), atol=1e-6)
    capsys.readouterr()
    for text, told in (
        ("first=x", "no number"),
        ("first=nan", "no number"),
        ("none", "no adapter"),
    ):
        assert main([*given, "--force", "--use", text]) == 2
        assert told in capsys.readouterr().err


def test_the_start_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A base that PEFT's start changed is found again with the checkpoint from before training."""
    import copy

    theirs = pytest.importorskip("peft")

    model = make()[0].eval()
    found = theirs.get_peft_model(
        copy.deepcopy(model), theirs.LoraConfig(r=2, target_modules=["0"])
    )
    for folder in ("before", "after"):
        found.save_pretrained(tmp_path / folder)
        config = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        (tmp_path / folder / "adapter_config.json").write_text(
            json.dumps(config | {"init_lora_weights": "corda"})
        )
    given = ["merge", source(), str(tmp_path / "after"), "--out", str(tmp_path / "m")]
    assert main(given) == 2
    assert "--initial" in capsys.readouterr().err
    assert main([*given, "--initial", str(tmp_path / "before")]) == 0
    assert torch.allclose(tnc.load(tmp_path / "m")(X), model(X), atol=1e-6)


def test_adapt_writes_for_peft_and_merge_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, peft, merged = tmp_path / "a", tmp_path / "p", tmp_path / "m"
    given = ["adapt", spec(tmp_path, "lora{rank=2}"), "--out", str(out), "--peft", str(peft)]
    assert main([*given, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["peft"]
    assert (row["adapter"], row["weights"], row["error"]) == ("default", 1, 0.0)
    model = make()[0].eval()
    again = import_peft(model, peft)
    assert torch.allclose(again.model(X), storing.load(model, out).model(X))
    source = f'callable{{function="{HERE}:make"}}'
    assert main(["merge", source, str(peft), "--out", str(merged)]) == 0
    assert torch.allclose(tnc.load(merged)(X), again.model.eval()(X), atol=1e-6)


def test_what_peft_has_no_form_for_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, peft = tmp_path / "a", tmp_path / "p"
    given = ["adapt", spec(tmp_path, "sara{threshold=0.2}"), "--out", str(out)]
    assert main([*given, "--peft", str(peft)]) != 0
    assert "no product" in capsys.readouterr().err
    assert not out.exists() and not peft.exists()
