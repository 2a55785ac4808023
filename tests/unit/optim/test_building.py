"""Optimizers from settings: groups by pattern, first match wins, nothing in silence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tnc.decide.optimizers import CLASSES, TORCH, class_of, names
from tnc.errors import BindError, PlanError, SpecError
from tnc.optim import FORMS, Together, build
from tnc.optim.building import choose, count, read_settings
from tnc.optim.rule import Rule, rules


class Text(nn.Module):
    """A table tied to the head, a norm, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 12)
        self.norm = nn.LayerNorm(12)
        self.down = nn.Linear(12, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(self.norm(self.up(self.table(tokens)))))


def compiled() -> nn.Module:
    torch.manual_seed(0)
    rules = [{"match": ["up", "down"], "structure": "low-rank", "keep": 0.6}]
    spec = tnc.Spec(version=1, rules=[*rules, {"match": "*", "structure": "dense"}])
    return tnc.compile(Text(), spec, example=torch.arange(6)[None]).model


def taken(optimizer: torch.optim.Optimizer) -> dict[str, list[str]]:
    return {group["part"]: sorted(group["param_names"]) for group in optimizer.param_groups}


GROUPS = [
    {"match": "cores", "rule": "muon{lr=0.02}"},
    {"match": ["*norm*", "*.bias"], "rule": {"adamw": {"lr": 0.001, "weight_decay": 0.0}}},
]


def test_the_first_group_that_matches_takes_a_parameter() -> None:
    model = compiled()
    made = build(model, {"groups": GROUPS, "default": "sgd{lr=0.1, momentum=0.9}"})
    assert isinstance(made, Together)
    assert taken(made) == {
        "muon": ["down.cores.A", "down.cores.B", "up.cores.A", "up.cores.B"],
        "adamw": ["down.bias", "norm.bias", "norm.weight", "up.bias"],
        "sgd": ["table.weight"],
    }
    assert [group["lr"] for group in made.param_groups] == [0.02, 0.001, 0.1]
    model(torch.arange(6)[None]).square().mean().backward()
    made.step()
    tied = build(model, [*GROUPS, {"match": "head.*", "rule": "sgd"}])
    assert taken(tied)["sgd"] == ["table.weight"]
    shapes = [{"match": "embeddings", "rule": "sgd"}, {"match": "vectors", "rule": "adamw"}]
    classes = build(model, [*shapes, {"match": "matrices", "rule": "lion"}])
    assert taken(classes)["sgd"] == ["table.weight"]
    assert len(taken(classes)["adamw"]) == 4 and len(taken(classes)["lion"]) == 4


def test_one_rule_is_its_own_class_whatever_its_groups() -> None:
    made = build(compiled(), "adamw{lr=0.003}")
    assert type(made) is torch.optim.AdamW and made.param_groups[0]["lr"] == 0.003
    twice = build(
        compiled(), {"groups": [{"match": "vectors", "rule": "lion"}], "default": "lion{lr=0.1}"}
    )
    assert type(twice) is rules.get("lion")
    assert [group["lr"] for group in twice.param_groups] == [1e-4, 0.1]


def test_frozen_parameters_are_of_no_group() -> None:
    model = compiled()
    model.table.weight.requires_grad_(False)
    made = build(model, GROUPS)
    assert "table.weight" not in [name for names in taken(made).values() for name in names]
    with pytest.raises(PlanError, match="frozen parameters only"):
        build(model, [{"match": "embeddings", "rule": "sgd"}, *GROUPS])
    model.requires_grad_(False)
    with pytest.raises(PlanError, match="nothing to train"):
        build(model, "adamw")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (GROUPS, r"no group takes table.weight \(11, 8\)"),
        ([*GROUPS, {"match": "nothing.*", "rule": "sgd"}], "'nothing.*' matches no parameter"),
        ([*GROUPS, {"match": "core", "rule": "sgd"}], "did you mean 'cores'"),
        ([{"match": "*", "rule": "sgd"}, *GROUPS], "group 1 (.*) trains nothing: group 0 takes"),
        ([{"match": "*", "rule": "muon"}], "Muon cannot train a parameter of shape"),
        ({"default": "adamv"}, "no optimizer is named 'adamv'; did you mean 'adam'"),
        ({"default": "adamw{lrr=0.1}"}, "unknown key 'lrr'; did you mean 'lr'"),
        ({"default": "adamw{lr=fast}"}, "expected a number, got 'fast'"),
        ({"default": "adamw{betas=[0.9, 2.0]}"}, "adamw: Invalid beta parameter at index 1"),
        ({"default": "muon{lr=-1}"}, "muon: Muon: lr is -1"),
        ({"default": "muon{adjust=none}"}, "adjust: expected 'original' or 'rms', got 'none'"),
        ({"default": "sgd{nesterov=true}"}, "sgd: Nesterov momentum requires a momentum"),
        ({"default": "adamw{lr"}, "expected '='"),
        ({"default": {"lr": 0.1}}, "needs a 'kind'|unknown key|an optimizer needs|expected"),
        ({"group": []}, "unknown key 'group'; did you mean 'groups'"),
        ({}, "needs groups, a default, or both"),
        ([{"match": "*"}], "missing key 'rule'"),
    ],
)
def test_what_is_wrong_is_told(settings: object, told: str) -> None:
    with pytest.raises((PlanError, BindError, SpecError)) as caught:
        build(compiled(), settings)
    text = str(caught.value)
    assert __import__("re").search(told, text), text


def test_a_pattern_may_be_allowed_to_match_nothing() -> None:
    extra = {"match": "nothing.*", "rule": "sgd", "allow_empty": True}
    made = build(compiled(), {"groups": [extra, *GROUPS], "default": "sgd"})
    assert set(taken(made)) == {"muon", "adamw", "sgd"}


def test_counts_are_of_parameters_and_of_state_by_formula() -> None:
    model = compiled()
    spec = read_settings({"groups": GROUPS, "default": "adafactor"})
    counted = count(model, choose(model, spec))
    assert [(c.match, c.rule, c.parameters) for c in counted] == [
        ("cores", "muon", 4),
        ("*norm*, *.bias", "adamw", 4),
        ("the rest", "adafactor", 1),
    ]
    assert counted[0].state_bytes == 4 * counted[0].entries
    assert counted[1].state_bytes == 8 * counted[1].entries
    assert counted[2].state_bytes == 4 * (11 + 8)
    assert sum(c.entries for c in counted) == sum(p.numel() for p in model.parameters())


def test_the_names_are_those_of_both_registries() -> None:
    bindable = {kind.__name__.lower(): kind for kind in FORMS}
    assert {*TORCH, "muon"} == set(bindable)
    assert all(class_of(name) is bindable[name] for name in TORCH)
    assert set(names()) == {*TORCH, *rules.all()}, "a rule is named as its file"
    assert not set(CLASSES) & set(names())
    for name, rule in rules.all().items():
        assert issubclass(rule, Rule) and class_of(name) is rule
