"""The groups of a spec's optimizer in a plan: counted on shapes, wrong ones refused early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tnc
from tnc.decide.grouping import GroupCount
from tnc.decide.plan import Plan
from tnc.decide.spec import read_spec
from tnc.errors import BindError, PlanError
from tnc.optim.building import choose, count, read_settings
from tnc.planner import preparing
from tnc.report.table import plan_tables

RULES = """\
version: 1
rules:
  - {match: "0", structure: low-rank, keep: 0.5}
  - {match: "*", structure: dense}
"""
GROUPS = """\
optimizer:
  groups:
    - {match: cores, rule: "muon{lr=0.02}"}
    - {match: vectors, rule: adamw}
  default: adafactor
"""


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 10))


def planned(tmp_path: Path, text: str, model: nn.Module | None = None, **given: Any) -> Plan:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    resolved = read_spec(file)
    model = model or net()
    given.setdefault("example", torch.ones(4, 32))
    return tnc.plan(model, resolved.spec, locations=resolved.locations, **given)


def test_a_plan_counts_what_the_compiled_model_trains(tmp_path: Path) -> None:
    plan = planned(tmp_path, RULES + GROUPS)
    spec = read_spec(tmp_path / "spec.yaml").spec
    made = tnc.compile(net(), spec, example=torch.ones(4, 32)).model
    assert plan.optimizer == count(made, choose(made, read_settings(spec)))
    assert [group.match for group in plan.optimizer] == ["cores", "vectors", "the rest"]
    assert plan.optimizer[0].state_bytes == 4 * plan.optimizer[0].entries
    assert planned(tmp_path, RULES).optimizer == ()


def test_a_plan_keeps_its_groups_and_not_its_digest(tmp_path: Path) -> None:
    plan = planned(tmp_path, RULES + GROUPS)
    assert plan.digest == planned(tmp_path, RULES).digest
    plan.save(tmp_path / "plan.json")
    again = Plan.read(tmp_path / "plan.json")
    assert again.optimizer == plan.optimizer and isinstance(again.optimizer[0], GroupCount)
    old = plan.to_json()
    del old["optimizer"]
    assert Plan.from_json(old).optimizer == ()
    old["optimizer"] = [{"match": "x"}]
    with pytest.raises(PlanError, match=r"optimizer\.0\.rule is missing"):
        Plan.from_json(json.loads(json.dumps(old)))


def test_its_table_has_groups_and_their_sum(tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    plan = planned(tmp_path, RULES + GROUPS)
    console.print(plan_tables(plan))
    text = console.export_text()
    assert "state bytes" in text and "the rest" in text and "adafactor" in text
    kept = sum(group.state_bytes for group in plan.optimizer)
    assert f"the optimizer keeps {kept:,} bytes for " in text


@pytest.mark.parametrize(
    ("groups", "told", "place"),
    [
        ('  groups: [{match: "3.*", rule: sgd}, {match: x, rule: sgd}]', "'x' matches no", "6:47"),
        ('  - {match: [vectors, "2.cores.*"], rule: sgd}\n', "'2.cores.\\*' matches no", "6:23"),
        ("  - {match: core, rule: sgd}\n", "'core' matches no parameter", "6:13"),
        ("  - {match: vectors, rule: sgd}\n", r"no group takes 3.weight", "6:3"),
    ],
)
def test_wrong_groups_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, told: str, place: str
) -> None:
    def work(*given: Any, **options: Any) -> None:
        raise AssertionError("the model was measured")

    monkeypatch.setattr(preparing, "measure", work)
    batches = [torch.ones(4, 32)]
    with pytest.raises(PlanError, match=told) as caught:
        planned(tmp_path, f"{RULES}optimizer:\n{groups}", calibration=batches)
    assert caught.value.where is not None
    assert caught.value.where.endswith(f"spec.yaml:{place}")
    with pytest.raises(AssertionError, match="measured"):
        planned(tmp_path, RULES + GROUPS, calibration=batches)


def test_patterns_of_cores_that_come_are_right(tmp_path: Path) -> None:
    groups = "optimizer:\n  - {match: ['0.cores.B', '*.cores.?'], rule: lion}\n"
    plan = planned(tmp_path, f'{RULES}{groups}  - {{match: "*", rule: adamw}}\n')
    assert [(group.rule, group.parameters) for group in plan.optimizer] == [
        ("lion", 2),
        ("adamw", 5),
    ]
    with pytest.raises(PlanError, match=r"'0\.cores\.Z' matches no parameter"):
        planned(
            tmp_path,
            RULES + "optimizer:\n  - {match: 0.cores.Z, rule: lion}\n" + "  - "
            "{match: '*', rule: adamw}\n",
        )


def test_a_parameter_that_its_rule_refuses_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(BindError, match="Muon cannot train") as caught:
        planned(tmp_path, RULES + "optimizer: muon\n")
    assert "spec.yaml:5:12" in str(caught.value.where)
