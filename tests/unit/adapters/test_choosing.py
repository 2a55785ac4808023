"""Adapters from rules, several at once, ranks under a budget; every weight has its reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnc
from tnc.adapters import Adapters
from tnc.decide.spec import check_tree
from tnc.decide.spectree import parse_tree
from tnc.errors import CaptureError, InfeasibleBudget, PlanError


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 12, generator=generator, dtype=torch.float64) for _ in range(count)]


def squares(output: Tensor, batch: Any) -> Tensor:
    return (output**2).mean()


def ranks(adapters: Adapters, name: str | None = None) -> dict[str, int]:
    return {path: delta.method.rank for path, delta in adapters.deltas(name).items()}  # type: ignore[attr-defined]


def adapted(settings: Any, **options: Any) -> Adapters:
    return tnc.adapt(net(), settings, calibration=batches(), loss=squares, **options)


def test_the_first_rule_that_matches_decides_and_every_other_weight_has_a_reason() -> None:
    rules = [
        {"match": "0", "method": "none"},
        {"match": ["2", "4"], "min_params": 50, "method": "dora{rank=2}"},
        {"match": "nowhere.*", "method": "lora", "allow_empty": True},
    ]
    made = adapted({"rules": rules})
    assert list(made.deltas()) == ["2.weight"]
    assert dict(made.reasons) == {
        "0.weight": "left alone by adapters.rules.0",
        "4.weight": "24 parameters are fewer than min_params 50 by adapters.rules.1",
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"match": "9", "method": "lora"}], "rule '9' matches no site"),
        ([{"match": "*", "op": "conv", "method": "lora"}], "with op conv matches no site"),
        (
            [{"match": "*", "method": "lora{rank=1}"}, {"match": "0", "method": "none"}],
            "rule '0' matches 1 site, all taken by earlier rules",
        ),
        ([{"match": "*", "method": "none"}], "no weight can be adapted: 0.weight: left alone"),
    ],
)
def test_rules_that_do_nothing_are_errors_with_their_place(rules: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message) as error:
        adapted({"rules": rules})
    assert error.value.where.startswith("adapters")


def test_errors_name_the_line_of_the_spec() -> None:
    text = "version: 1\nadapters:\n  rules:\n    - match: '*'\n      method: lora\n    - match: 4\n"
    spec = check_tree(parse_tree(text.replace("4\n", "'4'\n      method: lora\n"), "s.yaml"))
    with pytest.raises(PlanError) as error:
        tnc.adapt(net(), spec.spec, locations=spec.locations, example=batches()[0])
    assert error.value.where == "s.yaml:6"


def test_several_adapters_start_from_the_same_base() -> None:
    """Values of the second adapter do not depend on the first."""
    two = [
        {"name": "one", "rules": [{"match": "0", "method": "lora-sb{rank=2}"}]},
        {"name": "two", "rules": [{"match": "*", "method": "lora-ga{rank=1}"}], "train": "4.bias"},
    ]
    both, alone = adapted(two), adapted([two[1]])
    assert both.names == ("one", "two")
    for path, delta in alone.deltas("two").items():
        for name, core in delta.cores.items():
            assert torch.equal(core, both.deltas("two")[path].cores[name])
    assert "4.bias" in dict(both.named_parameters())


def test_what_is_trained_as_it_is_gets_no_adapter() -> None:
    made = adapted({"rules": [{"match": "*", "method": "lora{rank=2}"}], "train": "4"})
    assert "4.weight" not in made.deltas()
    assert dict(made.reasons)["4.weight"] == "it is trained as it is, beside the adapter"


def test_a_budget_gives_ranks_where_gradients_have_energy() -> None:
    """Against all ways of choosing: no other ranks within the budget keep more."""
    budget = 90
    made = adapted({"rules": [{"match": "*", "method": "lora"}], "budget": budget})
    found = ranks(made)
    model = net()
    for batch in batches():
        (squares(model(batch), batch) / 3).backward()
    energy = {
        name: torch.linalg.svdvals(parameter.grad).square()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2
    }
    sizes = {name: sum(model.get_parameter(name).shape) for name in energy}

    def kept(chosen: dict[str, int]) -> float:
        return float(sum(energy[name][:rank].sum() for name, rank in chosen.items()))

    def cost(chosen: dict[str, int]) -> int:
        return sum(rank * sizes[name] for name, rank in chosen.items())

    steps = (0, 1, 2, 3)
    every = [
        {"0.weight": a, "2.weight": b, "4.weight": c} for a in steps for b in steps for c in steps
    ]
    best = max(kept(each) for each in every if cost(each) <= budget)
    assert cost(found) <= budget
    assert kept(found) == pytest.approx(best, rel=2e-4)
    assert len(set(found.values())) > 1, "the example tells nothing"
    assert min(kept(each) for each in every if cost(each) <= budget) < 0.9 * best


def test_ranks_that_are_written_stay_and_count() -> None:
    rules = [{"match": "0", "method": "lora{rank=3}"}, {"match": "*", "method": "lora"}]
    made = adapted({"rules": rules, "budget": 66 + 20})
    assert ranks(made)["0.weight"] == 3
    assert sum(p.numel() for p in made.parameters()) <= 86
    with pytest.raises(InfeasibleBudget, match="trained"):
        adapted({"rules": rules, "budget": 50})


def test_a_share_is_of_the_models_parameters() -> None:
    whole = sum(p.numel() for p in net().parameters())
    made = adapted({"rules": [{"match": "*", "method": "lora"}], "budget": 0.25})
    assert 0 < sum(p.numel() for p in made.parameters()) <= 0.25 * whole


def test_a_budget_too_small_for_anything_says_what_would_do() -> None:
    with pytest.raises(PlanError, match="too small") as error:
        adapted({"rules": [{"match": "*", "method": "lora"}], "budget": 5})
    assert error.value.hint == "the smallest adapter has 11"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("lora-ga{rank=1}", "LoRAGA starts from gradients, and there is no calibration data"),
        (
            {"rules": [{"match": "*", "method": "lora"}], "budget": 0.1},
            "a budget chooses ranks from gradients, and there is no calibration data",
        ),
    ],
)
def test_what_is_missing_is_told_once(settings: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        tnc.adapt(net(), settings, example=batches()[0])


def test_without_any_input_there_is_one_clear_message() -> None:
    with pytest.raises(CaptureError, match="no example input to trace the model with"):
        tnc.adapt(net(), "lora{rank=1}")


def test_patterns_beside_rules_are_refused() -> None:
    with pytest.raises(PlanError, match="rules have patterns of their own"):
        adapted({"rules": [{"match": "*", "method": "lora"}]}, match="0")


def test_a_plan_says_what_adapting_does_and_is_the_same_every_time() -> None:
    settings = {"rules": [{"match": "*", "method": "lora"}], "budget": 90, "train": "4.bias"}
    made = adapted(settings)
    plans = [
        tnc.adapters.plan(net(), settings, calibration=batches(), loss=squares) for _ in range(2)
    ]
    assert plans[0] == plans[1] and plans[0].digest == plans[1].digest
    plan = plans[0]
    assert {e.weight: e.trained for e in plan.entries} == {
        path: sum(p.numel() for p in d.trained.values()) for path, d in made.deltas().items()
    }
    assert plan.trained() + 3 == sum(p.numel() for p in made.parameters())
    assert plan.beside == (("4.bias", 3),)
    assert plan.to_json()["share"] == plan.trained() / plan.model_params
    other = tnc.adapters.plan(net(), "lora{rank=1}", example=batches()[0])
    assert other.digest != plan.digest
