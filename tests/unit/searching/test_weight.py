"""Searches of a model's weight: folded as told, put back as a spec and as a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tnc
from tnc.cli import main
from tnc.decide.plan import Plan
from tnc.errors import SearchError, SourceError
from tnc.searching.target import targets

MODEL = """\
version: 1
model: {kind: callable, function: "tests.unit.searching.test_weight:model"}
calibration: {kind: random, shapes: [[2, 24]], samples: 8, held_out: 8}
rules: [{match: "*", structure: low-rank, keep: 0.5}]
"""
SEARCH = """\
search:
  target: {weight: 0.weight, spec: SPEC, output_modes: [2, 3, 2], input_modes: [4, 2, 3]}
  space: {bonds: full, rank: 3, ratio: 0.9}
  strategy: {tnale: {radius: 1}}
  engine: serial
  limits: {evaluations: 12}
"""


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "model.yaml").write_text(MODEL)
    (tmp_path / "s.yaml").write_text(SEARCH.replace("SPEC", str(tmp_path / "model.yaml")))
    assert main(["search", "run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def target(folder: Path, **options: Any) -> Any:
    (folder / "model.yaml").write_text(MODEL)
    return targets.get("weight")(
        **{"weight": "0.weight", "spec": str(folder / "model.yaml")} | options
    )


def test_modes_are_pairs(tmp_path: Path) -> None:
    found = target(tmp_path, output_modes=(3, 4), input_modes=(6, 4)).load()
    matrix = model()[0].weight.detach().double().numpy()
    assert found.shape == (18, 16)
    assert found[2 * 6 + 5, 3 * 4 + 1] == matrix[2 * 4 + 3, 5 * 4 + 1]
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(matrix))


def test_what_is_found_becomes_a_spec_and_a_plan(run: Path, tmp_path: Path) -> None:
    result = json.loads((run / "run.json").read_text())
    assert result
    spec, plan = tmp_path / "found.yaml", tmp_path / "found.plan.json"
    assert main(["search", "export", str(run), "--out", str(spec)]) == 0
    assert main(["search", "export", str(run), "--out", str(plan)]) == 0
    (entry,) = Plan.read(plan).entries
    assert entry.site == "0.weight" and entry.structure is not None
    out = tmp_path / "artifact"
    assert main(["compile", str(spec), "--plan", str(plan), "--out", str(out)]) == 0
    loaded = tnc.load(out, model=model())
    assert loaded[0].structure == entry.structure


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weight": "0.wieght"}, "did you mean 0.weight"),
        ({"weight": "0.bias"}, "a matrix is needed"),
        ({"output_modes": (5, 2), "input_modes": (6, 4)}, "do not fold"),
    ],
)
def test_wrong_weights_and_modes_are_refused(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises((SourceError, SearchError), match=told):
        target(tmp_path, **options).load()


def test_a_tensor_of_its_own_has_no_place_in_a_model(tmp_path: Path) -> None:
    ring = targets.get("ring")((2, 2, 2), (1, 1, 1))
    with pytest.raises(SearchError, match="no model"):
        ring.placed(ring.topology)
