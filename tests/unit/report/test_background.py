"""What a plan was chosen from: kept with it, true to it, and no part of its digest."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import tnc
from tests.compiled import spec
from tests.zoo import case
from tnc.decide.background import Background
from tnc.decide.plan import Plan

RULE = {"match": "encoder.*", "op": "linear", "structure": ["low-rank", "block-tensor-train"]}


@pytest.fixture(scope="module")
def plan() -> Plan:
    wanted = spec(RULE, budget={"scope": "encoder.*", "params": 0.7}, allocate="surrogate",
                  round_to=2)  # fmt: skip
    return tnc.plan(case("bert").build(), wanted, example=case("bert").inputs())


def test_it_is_kept_and_is_no_decision(plan: Plan) -> None:
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again.background == plan.background
    bare = replace(plan, background=Background())
    assert bare.digest == plan.digest and bare == plan


def test_a_plan_of_an_earlier_version_is_read(plan: Plan) -> None:
    data = plan.to_json()
    del data["background"]
    assert Plan.from_json(data).background == Background()


def test_what_was_chosen_lies_on_its_curve(plan: Plan) -> None:
    chosen = 0
    for entry in plan.entries:
        if entry.structure is None:
            continue
        points = [
            point
            for curve in plan.background.curves
            if (curve.site, curve.family) == (entry.site, entry.family)
            for point in curve.points
        ]
        (size,) = {dict(t.sizes)[n] for t in entry.structure.terms for n in t.equation.bonds}
        assert (entry.params, entry.flops, size) in [(p[0], p[1], p[4]) for p in points]
        chosen += 1
    assert chosen


def test_the_frontier_falls_and_the_plan_is_not_below_it(plan: Plan) -> None:
    frontier = plan.background.frontier
    assert frontier == tuple(sorted(frontier)) and len(frontier) > 10
    assert [error for _, error in frontier] == sorted((e for _, e in frontier), reverse=True)
    assert frontier[-1] == (plan.scope.dense_params, 0.0)
    error = sum(entry.error for entry in plan.entries)
    tighter = [e for used, e in frontier if used <= plan.budgets[0][1]]
    wider = [e for used, e in frontier if used >= plan.budgets[0][1]]
    assert 0.95 * wider[0] <= error <= 1.05 * tighter[-1]


def test_modules_come_in_the_order_of_execution(plan: Plan) -> None:
    names = [part.name for part in plan.background.parts]
    block = [name.rpartition("layer.0.")[2] for name in names if "layer.0." in name]
    assert block[-4:] == ["attention.output.LayerNorm", "intermediate.dense", "output.dense",
                          "output.LayerNorm"]  # fmt: skip
    assert sum(part.params for part in plan.background.parts) == plan.total.dense_params
