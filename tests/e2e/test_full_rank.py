"""Full-rank plans leave the outputs of real models as they are."""

from __future__ import annotations

import copy
import pickle
from functools import cache
from pathlib import Path

import pytest
import torch

import tnc
from tests.zoo import BY_NAME, CASES
from tnc.rewrite.contract import outputs_of

STACK = {"kind": "stacked", "of": "low-rank"}
FULL = [
    {"match": "*", "op": "experts", "structure": STACK, "ranks": "full", "allow_empty": True},
    {"match": "*", "op": "linear", "structure": "low-rank", "ranks": "full", "allow_empty": True},
    {"match": "*", "op": "conv", "structure": "tucker", "ranks": "full", "allow_empty": True},
    {
        "match": "*",
        "op": "embedding",
        "structure": "low-rank",
        "ranks": "full",
        "allow_empty": True,
    },
]


def gap(before: tuple[torch.Tensor, ...], after: tuple[torch.Tensor, ...]) -> float:
    """Return the largest relative difference of two sets of outputs."""
    assert len(before) == len(after)
    worst = 0.0
    for a, b in zip(before, after):
        scale = float(a.double().norm()) or 1.0
        worst = max(worst, float((a.double() - b.double()).norm()) / scale)
    return worst


@cache
def compiled(name: str):
    """Compile a case of the zoo once; return the case's model, its input, and what was made."""
    case = BY_NAME[name]
    model, probe = case.build(), case.inputs()
    return model, probe, tnc.compile(model, tnc.Spec(version=1, rules=FULL), example=probe)


def limit(name: str) -> float:
    """Return how far outputs may be off: 1e-4, and the rounding of bfloat16."""
    return 2e-2 if name == "half" else 1e-4


each = pytest.mark.parametrize("name", [case.name for case in CASES])


@each
def test_full_rank_is_exact(name: str) -> None:
    model, probe, made = compiled(name)
    fresh = BY_NAME[name].build().state_dict()
    assert gap(outputs_of(model, probe), outputs_of(made.model, probe)) <= limit(name)
    assert all(torch.equal(fresh[n], v) for n, v in model.state_dict().items()), "input edited"
    assert isinstance(made.model, type(model))


@each
def test_no_weight_goes_unmentioned(name: str) -> None:
    model, _, made = compiled(name)
    told = {member for entry in made.plan.entries for member in entry.members}
    told |= {skip.site for skip in made.plan.skips}
    first = {alias: site.name for site in made.trace.sites for alias in site.aliases}
    for weight, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            assert first.get(weight, weight) in told or weight in told, weight


@each
def test_compiled_models_copy_and_pickle(name: str) -> None:
    _, probe, made = compiled(name)
    want = outputs_of(made.model, probe)
    for other in (copy.deepcopy(made.model), pickle.loads(pickle.dumps(made.model))):
        assert gap(want, outputs_of(other, probe)) == 0.0
        ties = len({id(p) for p in other.parameters()})
        assert ties == len({id(p) for p in made.model.parameters()})


@each
def test_saved_and_loaded_models_compute_the_same(name: str, tmp_path: Path) -> None:
    _, probe, made = compiled(name)
    tnc.save(made, tmp_path / "artifact")
    loaded = tnc.load(tmp_path / "artifact", model=BY_NAME[name].build(seed=1))
    assert gap(outputs_of(made.model, probe), outputs_of(loaded, probe)) == 0.0


@each
def test_densify_goes_back(name: str) -> None:
    _, probe, made = compiled(name)
    dense = tnc.densify(made.model)
    assert not [m for m in dense.modules() if isinstance(m, tnc.StructuredLayer)]
    assert gap(outputs_of(made.model, probe), outputs_of(dense, probe)) <= limit(name)
