"""A part of the benchmark `peft-differential`: behaviours of adapted models beside PEFT's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tnc.adapters.method import methods

pytest.importorskip("peft")
pytest.importorskip("transformers")

from benchmarks import peft_behaviours as asked
from benchmarks.peft_differential import (
    COVERED,
    LEFT_OUT,
    TOLERANCE,
    behaviours,
    compared,
    forms,
    lora_ga,
)
from benchmarks.peft_models import MODELS
from benchmarks.peft_trial import Trial

CHOSEN = (
    ("mlp", "lora"),
    ("mlp", "dora"),
    ("mlp", "randlora"),
    ("mlp", "head"),
    ("embedding, Conv1D", "rslora"),
    ("tied", "lora"),
    ("conv2d", "dora"),
    ("conv in groups", "lora"),
    ("attention", "lora"),
    ("parameters", "lora"),
    ("gpt2", "lora"),
)


@pytest.mark.parametrize(("name", "form"), CHOSEN)
def test_behaves_as_peft_does(name: str, form: str, tmp_path: Path) -> None:
    model = next(model for model in MODELS if model.name == name)
    rows = list(compared(model, form, dict(forms(model))[form], tmp_path))
    assert {row[2]: row[3] for row in rows if not row[3] <= TOLERANCE} == {}
    assert len(rows) >= 7


def test_the_oracle_can_fail(tmp_path: Path) -> None:
    trial = Trial(MODELS[0], {}, tmp_path)
    assert asked.forward(trial) < TOLERANCE
    trial.theirs.base_model.model.lin0.scaling["default"] *= 1.01
    assert asked.forward(trial) > TOLERANCE


def test_the_start_of_lora_ga_is_not_that_of_peft() -> None:
    assert "lora-ga" in methods.all()
    for who, _, _, error in lora_ga():
        assert error < 1e-12 if who == "tnc" else error > 0.1


def test_the_table_of_tests_is_covered_once() -> None:
    stood_for = {test for tests in COVERED.values() for test in tests}
    assert not stood_for & set(LEFT_OUT)
    named = {behaviour.__name__ for model in MODELS for behaviour in behaviours(model, "lora")}
    assert named == set(COVERED)
