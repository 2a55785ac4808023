"""Rules and sites: the first match wins, and nothing that does nothing passes in silence."""

from __future__ import annotations

import pytest

from tnc.decide.matching import match_rules
from tnc.decide.site import Site, Use
from tnc.decide.spec import Spec
from tnc.errors import PlanError
from tnc.net import Signature


def site(name: str, op: str = "linear", shape: tuple[int, int] = (8, 6), **more: object) -> Site:
    """A site of a given name, operation and shape."""
    module = name.rpartition(".")[0]
    uses = (Use(module, op, "module", 4),)
    return Site(name, (name,), Signature(shape[:1], shape[1:]), "float32", uses, **more)


SITES = (
    site("encoder.0.query.weight"),
    site("encoder.0.value.weight"),
    site("encoder.1.query.weight"),
    site("head.weight", shape=(3, 6)),
    site("table.weight", op="embedding", shape=(50, 6)),
)


def spec(*rules: dict, **more: object) -> Spec:
    """A spec with a budget, whose rules say low-rank where they say nothing else."""
    made = [{"structure": "low-rank", **rule} for rule in rules]
    return Spec(version=1, rules=made, budget={"params": 0.5}, **more)


def chosen(*rules: dict, **more: object) -> dict[str, int]:
    """The targets by name with the number of the rule that took each."""
    made = spec(*rules, **more)
    targets, _ = match_rules(SITES, made, {})
    return {target.name: made.rules.index(target.rule) for target in targets}


def test_the_first_rule_that_matches_decides() -> None:
    found = chosen({"match": "*query*"}, {"match": "encoder.*"})
    assert found == {
        "encoder.0.query.weight": 0, "encoder.0.value.weight": 1, "encoder.1.query.weight": 0
    }  # fmt: skip


def test_patterns_match_paths_with_or_without_the_weight() -> None:
    for pattern in ("head", "head.weight", "he*", "*"):
        assert "head.weight" in chosen({"match": pattern})
    assert chosen({"match": ["head", "table"]}) == {"head.weight": 0, "table.weight": 0}


def test_an_operation_narrows_a_rule() -> None:
    assert chosen({"match": "*", "op": "embedding"}) == {"table.weight": 0}


def test_a_tied_site_answers_to_all_of_its_names() -> None:
    tied = Site("a.weight", ("a.weight", "b.weight"), Signature((8,), (6,)), "float32",
                (Use("a", "linear", "module", 4),))  # fmt: skip
    targets, _ = match_rules([tied], spec({"match": "b.*"}), {})
    assert [target.name for target in targets] == ["a.weight"]


def test_every_other_site_is_skipped_with_its_reason() -> None:
    rules = ({"match": "head", "structure": "dense"}, {"match": "*", "min_params": 48})
    targets, skips = match_rules(
        SITES, spec(*rules), {"rules.0": "s.yaml:4", "rules.1": "s.yaml:9"}
    )
    reasons = {skip.site: skip.reason for skip in skips}
    assert reasons == {"head.weight": "dense by s.yaml:4"}
    assert {target.name for target in targets} | set(reasons) == {s.name for s in SITES}
    _, skips = match_rules(SITES, spec({"match": "*", "min_params": 49}), {"rules.0": "s.yaml:9"})
    assert {s.site: s.reason for s in skips}["encoder.0.query.weight"] == (
        "48 parameters are fewer than min_params 49 of s.yaml:9"
    )
    _, skips = match_rules(SITES, spec({"match": "head"}), {})
    assert {skip.reason for skip in skips} == {"no rule matches it"} and len(skips) == 4


def test_a_rule_without_a_match_is_an_error_with_near_names() -> None:
    with pytest.raises(PlanError, match=r"rule 'encoder\.0\.qeury' matches no site") as caught:
        match_rules(SITES, spec({"match": "encoder.0.qeury"}), {"rules.0": "s.yaml:7"})
    assert caught.value.where == "s.yaml:7"
    assert "encoder.0.query" in caught.value.hint and "allow_empty" in caught.value.hint
    both = ["*", "encoder.9.*"]
    with pytest.raises(PlanError, match=r"'encoder\.9\.\*', one of the patterns of a rule"):
        match_rules(SITES, spec({"match": both}), {})
    match_rules(SITES, spec({"match": both, "allow_empty": True}), {})
    with pytest.raises(PlanError, match="'\\*' with op conv matches no site"):
        match_rules(SITES, spec({"match": "*", "op": "conv"}), {})


def test_a_shadowed_rule_is_an_error_of_its_own() -> None:
    rules = ({"match": "encoder.*"}, {"match": "*query*"})
    with pytest.raises(PlanError, match="matches 2 sites, all taken by earlier rules") as caught:
        match_rules(SITES, spec(*rules), {})
    assert caught.value.where == "rules[1]" and "move this rule up" in caught.value.hint


def test_a_rule_may_be_allowed_to_match_nothing() -> None:
    rules = ({"match": "*"}, {"match": "*query*", "allow_empty": True},
             {"match": "nowhere", "allow_empty": True})  # fmt: skip
    assert set(chosen(*rules).values()) == {0}


GROUP = (("encoder.0.query.weight", "encoder.0.value.weight"),)


def test_sites_that_read_one_tensor_are_one_target_where_factors_are_shared() -> None:
    targets, _ = match_rules(SITES, spec({"match": "encoder.*"}, shares=True), {}, GROUP)
    names = [target.name for target in targets]
    assert names == ["encoder.0.query.weight + encoder.0.value.weight", "encoder.1.query.weight"]
    assert targets[0].signature == Signature((16,), (6,))
    alone, _ = match_rules(SITES, spec({"match": "encoder.*"}), {}, GROUP)
    assert len(alone) == 3


@pytest.mark.parametrize("other", [
    site("encoder.0.value.weight", transposed=True), site("encoder.0.value.weight", groups=2),
    site("encoder.0.value.weight", shape=(8, 7)),
])  # fmt: skip
def test_sites_that_cannot_be_stacked_stay_apart(other: Site) -> None:
    targets, _ = match_rules((SITES[0], other), spec({"match": "*"}, shares=True), {}, GROUP)
    assert len(targets) == 2


def test_sites_of_different_rules_stay_apart() -> None:
    rules = ({"match": "*query*"}, {"match": "*value*"})
    targets, _ = match_rules(SITES, spec(*rules, shares=True), {}, GROUP)
    assert len(targets) == 3
