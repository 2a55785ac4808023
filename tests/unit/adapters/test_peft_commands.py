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


def spec(folder: Path, method: str) -> str:
    place = folder / "spec.yaml"
    place.write_text(SPEC.replace("METHOD", f'"{method}"'))
    return str(place)


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
