"""Plans: what is read is what was written, edits are found, differences and reasons are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_cli import plan_of
from tnc.decide.plan import Plan
from tnc.errors import PlanError


def test_a_plan_goes_to_json_and_back(tmp_path: Path) -> None:
    plan = plan_of()
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    plan.save(tmp_path / "plan.json")
    again = Plan.read(tmp_path / "plan.json")
    assert again == plan and again.digest == plan.digest
    assert json.loads((tmp_path / "plan.json").read_text())["digest"] == plan.digest


def test_the_digest_is_of_what_was_decided() -> None:
    plan = plan_of()
    explained = plan_of(reason="another")
    told = (explained, replace(plan, notes=("x",)), replace(plan, measured=(("a", 1.0),)))
    assert {other.digest for other in told} == {plan.digest}
    decided = (
        plan_of(rank=3),
        replace(plan, seed=1),
        replace(plan, fingerprint="g"),
        replace(plan, passes=("factorize", "keep-ties")),
        replace(plan, entries=plan.entries[:1]),
        replace(plan, entries=(replace(plan.entries[0], fit="als"), *plan.entries[1:])),
        replace(plan, entries=(replace(plan.entries[0], metric="both"), *plan.entries[1:])),
    )
    assert len({other.digest for other in decided} | {plan.digest}) == len(decided) + 1


def test_estimates_are_no_decisions() -> None:
    plan = plan_of()
    entry = plan.entries[0]
    near = replace(plan, entries=(replace(entry, error=0.2, relative=0.3), *plan.entries[1:]))
    other = replace(plan, entries=(replace(entry, fit="als"), *plan.entries[1:]))
    assert near.digest == plan.digest != other.digest


def edited(tmp_path: Path, change) -> Path:
    data = plan_of().to_json() | {"digest": plan_of().digest}
    change(data)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    return file


def test_an_edited_plan_is_refused_unless_its_digest_is_taken_out(tmp_path: Path) -> None:
    file = edited(tmp_path, lambda data: data.update(seed=9))
    with pytest.raises(PlanError, match="does not match its digest: it was edited") as caught:
        Plan.read(file)
    assert caught.value.where == str(file) and "remove the 'digest'" in caught.value.hint
    file = edited(tmp_path, lambda data: data.update(seed=9, digest=""))
    assert Plan.read(file).seed == 9


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data.update(version=99), "plan version 99 is not 1"),
        (lambda data: data.pop("entries"), "not a plan: entries is missing"),
        (lambda data: data["entries"][0].update(colour="red"), "not a plan: TypeError"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_file(tmp_path: Path, change, told: str) -> None:
    file = edited(tmp_path, change)
    with pytest.raises(PlanError, match=told) as caught:
        Plan.read(file)
    assert caught.value.where == str(file)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "null", ""])
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError, match=r"(not a|cannot read the) plan") as caught:
        Plan.read(tmp_path / "plan.json")
    assert "plan.json" in caught.value.where
    with pytest.raises(PlanError, match="cannot read the plan"):
        Plan.read(tmp_path / "nowhere.json")


def test_differences_are_told_site_by_site() -> None:
    plan, other = plan_of(), plan_of(rank=3)
    assert plan.diff(plan_of(reason="another")) == ()
    (line,) = plan.diff(other)
    assert line.startswith("a.weight: ") and "r=2" in line and "r=3" in line and "(48)" in line
    assert plan.diff(replace(plan, entries=plan.entries[:1])) == ("b.weight: dense -> absent",)


def test_a_decision_is_explained() -> None:
    told = plan_of().explain("a.weight")
    for part in ("becomes", "64 -> 32 parameters", "because it pays", "by s.yaml:4", "svd"):
        assert part in told
    assert "stays dense" in plan_of().explain("b.weight")
    with pytest.raises(PlanError, match=r"the plan has no site 'c\.weight'"):
        plan_of().explain("c.weight")
