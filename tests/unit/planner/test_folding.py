"""Searches inside a plan: foldings of matrices."""

from __future__ import annotations

import json

import jsonschema
import pytest
import torch
from torch import nn

import tnc
from tnc.decide.options import build
from tnc.decide.spec_schema import schema_text
from tnc.errors import PlanError, TncError
from tnc.explore import strategies
from tnc.explore.foldings import Folding, FoldingSpace
from tnc.net import Signature
from tnc.structures import families

HIDDEN = ((12, 4), (4, 24))


def hidden() -> nn.Linear:
    """Return a layer that is nearly one Kronecker product, under a folding that is not the even."""
    torch.manual_seed(0)
    layer = nn.Linear(96, 48)
    (o1, o2), (i1, i2) = HIDDEN
    product = torch.kron(torch.randn(o1, i1), torch.randn(o2, i2))
    layer.weight.data = product + 0.01 * torch.randn(48, 96)
    return layer


def spec(**options: object) -> tnc.Spec:
    search = {"families": ["tensor-train"], "keep": 0.4, "evaluations": 40, **options}
    rules = [{"match": "*", "structure": {"search": search}}]
    return tnc.Spec(version=1, budget={"params": 0.4}, rules=rules)


def planned(**options: object) -> tnc.Plan:
    return tnc.plan(hidden(), spec(**options), example=torch.randn(8, 96))


def test_a_plan_finds_the_hidden_folding_and_says_what_it_looked_at() -> None:
    plan = planned()
    (entry,) = plan.entries
    assert entry.family == "tensor-train{output_modes=[12, 4], input_modes=[4, 24]}"
    assert entry.relative < 0.02
    assert any("foldings of tensor-train" in note and "->" in note for note in plan.notes)
    made = tnc.compile(hidden(), spec(), plan=plan, example=torch.randn(8, 96)).model
    assert sum(p.numel() for p in made.parameters()) < 0.45 * 96 * 48


def test_plans_are_repeatable() -> None:
    assert planned().digest == planned().digest


def test_a_strategy_that_needs_bonds_is_refused() -> None:
    with pytest.raises(PlanError, match="cannot search foldings"):
        planned(strategy="spectral")


@pytest.mark.parametrize("name", sorted(strategies.all()))
def test_every_strategy_searches_or_refuses(name: str) -> None:
    try:
        plan = planned(strategy=name, evaluations=6)
    except TncError as error:
        assert "strategy" in str(error)
    else:
        assert plan.entries


def test_modes_are_checked() -> None:
    train = build(families, "tensor-train{output_modes=[6, 7], input_modes=[12, 8]}")
    assert "hold 42 of 48" in train.refuses(Signature((48,), (96,)))
    wrong = build(families, "tensor-train{output_modes=[6, 2, 4]}")
    assert "2 modes" in wrong.refuses(Signature((48,), (96,)))
    assert "matrices" in train.refuses(Signature((48,), (96, 3, 3)))


def test_neighbours_are_foldings() -> None:
    axis = Folding("o", 48, 3)
    for cut in axis.values():
        for near in axis.near(cut, 1):
            assert near == cut or (min(near) > 1 and near[0] * near[1] * near[2] == 48)
    reached, new = set(), {axis.values()[0]}
    while new:
        reached |= new
        new = {n for cut in new for n in axis.near(cut, 1)} - reached
    assert reached == set(axis.values())


def test_a_space_counts_and_refuses() -> None:
    space = FoldingSpace(48, 96, 2, lambda outputs, inputs: 100)
    assert space.points >= len(list(space.all()))
    assert "size 1" in space.refuses(space.topology(((1, 48), (2, 48))))
    assert not space.refuses(space.topology(((2, 24), (2, 48))))


def test_the_schema_takes_options_by_the_name_of_their_owner() -> None:
    checker = jsonschema.Draft7Validator(json.loads(schema_text()))

    def wrong(structure: object) -> bool:
        rules = [{"match": "*", "structure": structure}]
        return not checker.is_valid({"version": 1, "rules": rules})

    assert not wrong({"search": {"evaluations": 4}}) and not wrong({"low-rank": None})
    assert wrong({"search": {"evaluation": 4}}) and wrong({"serch": {}})
