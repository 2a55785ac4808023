"""Full-rank plans leave the outputs of real models as they are."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import tnc
from tests.zoo import CASES
from tnc.rewrite.contract import outputs_of

FULL = [
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_full_rank_is_exact(case) -> None:
    model, probe = case.build(), case.inputs()
    before = outputs_of(model, probe)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    made = tnc.compile(model, tnc.Spec(version=1, rules=FULL), example=probe)
    limit = 2e-2 if case.name == "half" else 1e-4
    assert gap(before, outputs_of(made.model, probe)) <= limit
    assert all(torch.equal(state[n], v) for n, v in model.state_dict().items()), "input was edited"
    assert isinstance(made.model, type(model))
    accounted = {m for entry in made.plan.entries for m in entry.members}
    accounted |= {skip.site for skip in made.plan.skips}
    aliases = {a: s.name for s in made.trace.sites for a in s.aliases}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            assert aliases.get(name, name) in accounted or name in accounted, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compiled_models_copy_and_pickle(case) -> None:
    model, probe = case.build(), case.inputs()
    made = tnc.compile(model, tnc.Spec(version=1, rules=FULL), example=probe).model
    want = outputs_of(made, probe)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert gap(want, outputs_of(other, probe)) == 0.0
        ties = len({id(p) for p in other.parameters()})
        assert ties == len({id(p) for p in made.parameters()})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_densify_goes_back(case) -> None:
    model, probe = case.build(), case.inputs()
    made = tnc.compile(model, tnc.Spec(version=1, rules=FULL), example=probe).model
    dense = tnc.densify(made)
    assert not [m for m in dense.modules() if isinstance(m, tnc.StructuredLayer)]
    assert gap(outputs_of(made, probe), outputs_of(dense, probe)) <= (
        2e-2 if case.name == "half" else 1e-4
    )
