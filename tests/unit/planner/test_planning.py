"""Plans of real models: budgets are met when recounted, the promised best is the best, replays."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import tnc
from tests.compiled import spec
from tests.elsewhere import elsewhere
from tests.zoo import case
from tnc.decide.plan import Plan
from tnc.errors import FitError, InfeasibleBudget, PlanError, UnknownName
from tnc.nn import StructuredLayer
from tnc.rewrite.contract import outputs_of
from tnc.sources import evaluations

LINEAR = {"match": "*layer*", "op": "linear", "structure": "low-rank"}
BATCHES = tuple(case("bert").inputs(seed)[1] for seed in range(4))
OUTPUT = evaluations.get("output")()
PROBE = {"example": case("bert").inputs()}
DATA = {"calibration": BATCHES, "evaluation": OUTPUT}


def bert(seed: int = 0) -> nn.Module:
    return case("bert").build(seed)


def counted(model: nn.Module, name: str) -> int:
    """Parameters or bytes of a model's parameters in the encoder."""
    found = model.encoder.parameters()
    return sum(p.numel() * (p.element_size() if name == "bytes" else 1) for p in found)


def flops(made: tnc.api.Compiled) -> int:
    """FLOPs of the encoder's weights on the example, recounted by torch for every layer."""
    from torch.utils.flop_counter import FlopCounterMode

    total = 0

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal total
        with FlopCounterMode(display=False) as counter:
            module.forward(args[0])
        total += counter.get_total_flops()

    layers = [m for m in made.model.encoder.modules() if isinstance(m, nn.Linear | StructuredLayer)]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    outputs_of(made.model, made.probe)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("name", ["params", "bytes"])
@pytest.mark.parametrize("share", [0.75, 0.5])
def test_a_budget_is_met_on_the_compiled_model(name: str, share: float) -> None:
    budget = {"scope": "encoder.*", name: share}
    made = tnc.compile(bert(), spec(LINEAR, budget=budget), **PROBE)
    found, dense = counted(made.model, name), counted(bert(), name)
    assert 0.8 * share * dense < found <= share * dense
    total = sum(p.numel() for p in made.model.parameters())
    assert made.plan.total.params == total
    assert made.plan.scope.params == counted(made.model, "params")


def test_a_budget_of_flops_is_met_when_torch_counts_them() -> None:
    budget = {"scope": "encoder.*", "flops": 0.6}
    made = tnc.compile(bert(), spec(LINEAR, budget=budget), **PROBE)
    dense = spec({**LINEAR, "structure": "dense"}, budget=budget | {"flops": 1.0})
    whole = tnc.compile(bert(), dense, **PROBE)
    assert whole.plan.scope.flops == flops(whole)
    assert made.plan.scope.flops == flops(made) <= 0.6 * flops(whole)


def test_an_absolute_budget_is_a_number_of_parameters() -> None:
    made = tnc.compile(bert(), spec(LINEAR, budget={"scope": "encoder.*", "params": 3000}), **PROBE)
    assert 2500 < counted(made.model, "params") <= 3000


def test_two_budgets_are_met_at_once() -> None:
    budget = {"scope": "encoder.*", "params": 0.6, "flops": 0.5}
    plan = tnc.plan(bert(), spec(LINEAR, budget=budget), **PROBE)
    assert plan.scope.params <= 0.6 * plan.scope.dense_params
    assert plan.scope.flops <= 0.5 * plan.scope.dense_flops


def test_a_budget_of_latency_is_planned() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    plan = tnc.plan(model, spec({"match": "*", "structure": "low-rank"}, budget={"latency": 0.7}),
                    example=torch.ones(64, 512))  # fmt: skip
    assert any(entry.structure for entry in plan.entries)
    assert dict(plan.budgets)["latency"] > 0


def test_an_error_bound_is_kept_and_a_looser_one_is_cheaper() -> None:
    found = []
    for bound in (1e-5, 1e-4):
        budget = {"scope": "encoder.*", "error": bound, "minimise": "params"}
        wish = spec(LINEAR, budget=budget, metric="both", allocate="surrogate")
        plan = tnc.plan(bert(), wish, **DATA)
        assert 0 < sum(entry.error for entry in plan.entries) <= bound
        found.append(plan.scope.params)
    assert found[0] > found[1]


def test_an_error_bound_without_a_measured_unit_is_refused() -> None:
    budget = {"scope": "encoder.*", "error": 0.4, "minimise": "params"}
    with pytest.raises(PlanError, match="in the unit of the evaluation"):
        tnc.plan(bert(), spec(LINEAR, budget=budget), **PROBE)


@pytest.mark.parametrize("budget", [{"params": 0.01}, {"flops": 0.01}, {"bytes": 0.01}])
def test_an_infeasible_budget_names_the_tightest_and_that_is_feasible(budget: dict) -> None:
    ((name, _),) = budget.items()
    wish = {"scope": "encoder.*", **budget}
    with pytest.raises(InfeasibleBudget, match="no plan meets the budget") as caught:
        tnc.plan(bert(), spec(LINEAR, budget=wish), **PROBE)
    found = re.search(r"can be met is ([\d,]+) \(([\d.]+) of", caught.value.message)
    assert found is not None and "encoder.*" in caught.value.where
    least, share = int(found[1].replace(",", "")), float(found[2])
    for feasible in (least, share):
        tnc.plan(bert(), spec(LINEAR, budget={"scope": "encoder.*", name: feasible}), **PROBE)
    with pytest.raises(InfeasibleBudget):
        tnc.plan(bert(), spec(LINEAR, budget={"scope": "encoder.*", name: least - 1}), **PROBE)


def test_the_least_sum_and_the_least_maximum_are_each_the_best_in_their_way() -> None:
    budget = {"scope": "encoder.*", "params": 0.5}
    plans = {
        objective: tnc.plan(bert(), spec(LINEAR, budget=budget, objective=objective), **PROBE)
        for objective in ("sum", "max")
    }
    errors = {name: [e.error for e in plan.entries] for name, plan in plans.items()}
    assert sum(errors["sum"]) < sum(errors["max"]) and max(errors["max"]) < max(errors["sum"])


def test_a_uniform_plan_keeps_one_share_of_every_layer() -> None:
    budget = {"scope": "encoder.*", "params": 0.5}
    made = tnc.compile(bert(), spec(LINEAR, budget=budget, allocate="uniform"), **PROBE)
    shares = [entry.params / entry.dense_params for entry in made.plan.entries]
    assert counted(made.model, "params") <= 0.5 * counted(bert(), "params")
    assert max(shares) - min(shares) < 0.15 and len(shares) == 12
    with pytest.raises(PlanError, match="uniform cannot meet a latency"):
        tnc.plan(bert(), spec(LINEAR, budget={"latency": 0.5}, allocate="uniform"), **PROBE)


def distance(model: nn.Module) -> float:
    """The figure of the evaluation on the calibration data."""
    found = []
    for batch in BATCHES:
        features = []
        with torch.no_grad():
            for one in (model, bert()):
                features.append(OUTPUT.features(one(**batch), batch))
        found.append(OUTPUT.distance(*features))
    return float(torch.cat(found).mean())


def test_measured_allocation_is_never_worse_than_uniform_on_the_calibration_data() -> None:
    found = {}
    for allocate in ("measured", "uniform"):
        wish = spec(LINEAR, budget={"scope": "encoder.*", "params": 0.5}, allocate=allocate,
                    metric="auto", passes=("find-sites", "factorize{refit=0.0}"))  # fmt: skip
        made = tnc.compile(bert(), wish, **DATA)
        found[allocate] = distance(made.model)
        if allocate == "measured":
            assert any("rescored on the model" in note for note in made.plan.notes)
    assert 0 < found["measured"] <= found["uniform"] * 1.001


def test_ranks_and_shares_that_the_spec_fixes_are_kept() -> None:
    rules = ({"match": "*query", "structure": "low-rank", "ranks": {"r": 3}},
             {"match": "*key", "structure": "low-rank", "keep": 0.5},
             {"match": "*value", "structure": "tucker", "ranks": "full"})  # fmt: skip
    plan = tnc.plan(bert(), spec(*rules), **PROBE)
    entries = [e for e in plan.entries if "layer.0.attention.self" in e.site]
    by_name = {e.site.split(".")[-2]: e for e in entries}
    assert by_name["query"].structure.terms[0].size["r"] == 3
    assert by_name["key"].params <= 0.5 * 256 < by_name["key"].params + 32
    assert by_name["value"].error < 1e-9 < by_name["query"].error
    assert all("fixed by the spec" in e.reason for e in plan.entries)


def test_rules_that_cannot_be_carried_out_are_refused_before_anything_is_measured(
    monkeypatch,
) -> None:
    monkeypatch.setattr(
        "tnc.planner.preparing.measure", lambda *_, **__: pytest.fail("it measured first")
    )
    monkeypatch.setattr(
        "tnc.planner.preparing.capture", lambda *_, **__: pytest.fail("it captured first")
    )
    with pytest.raises(UnknownName, match="no fit is named 'svdd'") as caught:
        tnc.plan(bert(), spec({**LINEAR, "fit": "svdd", "keep": 0.5}), **DATA)
    assert "did you mean 'svd'" in caught.value.hint and caught.value.where == "rules[0].fit"


def test_a_fit_that_does_not_take_the_structure_is_refused_in_the_plan() -> None:
    wish = spec({**LINEAR, "structure": "tensor-ring", "fit": "svd", "keep": 0.5})
    with pytest.raises(PlanError, match="fit 'svd' does not take tensor-ring"):
        tnc.plan(bert(), wish, **PROBE)
    assert not issubclass(PlanError, FitError)


def test_a_metric_that_was_not_measured_is_refused() -> None:
    wish = spec({**LINEAR, "keep": 0.5}, metric="both")
    with pytest.raises(PlanError, match="the metric 'both' needs calibration data"):
        tnc.plan(bert(), wish, **PROBE)
    with pytest.raises(PlanError, match="the metric 'both' needs an evaluation"):
        tnc.plan(bert(), wish, calibration=BATCHES)


def test_a_plan_replays_on_another_checkpoint() -> None:
    wish = spec({**LINEAR, "keep": 0.5})
    plan = tnc.plan(bert(), wish, **PROBE)
    again = Plan.from_json(plan.to_json())
    made, direct = (tnc.compile(bert(seed), wish, plan=again, **PROBE) for seed in (1, 0))
    assert made.plan == plan
    shapes = [{n: p.shape for n, p in m.model.named_parameters()} for m in (made, direct)]
    assert shapes[0] == shapes[1]
    outputs = [outputs_of(m.model, m.probe)[0] for m in (made, direct)]
    assert not torch.equal(*outputs)


def test_a_plan_is_refused_on_another_model() -> None:
    wish = spec({**LINEAR, "keep": 0.5})
    plan = tnc.plan(bert(), wish, **PROBE)
    with pytest.raises(PlanError, match="made for another model: the fingerprints differ"):
        tnc.compile(case("vit").build(), wish, plan=plan, example=case("vit").inputs())


def test_a_measured_plan_asks_for_its_data_again() -> None:
    wish = spec({**LINEAR, "keep": 0.5}, metric="auto")
    plan = tnc.plan(bert(), wish, **DATA)
    with pytest.raises(PlanError, match="in a measured metric, which needs calibration data"):
        tnc.compile(bert(), wish, plan=plan, **PROBE)
    with pytest.raises(PlanError, match="which needs an evaluation"):
        tnc.compile(bert(), wish, plan=plan, calibration=BATCHES)
    assert tnc.compile(bert(), wish, plan=plan, **DATA).plan.digest == plan.digest


def digest() -> str:
    """Return the digest of a plan that was chosen by measures."""
    budget = {"scope": "encoder.*", "params": 0.5}
    wish = spec(LINEAR, metric="auto", budget=budget, allocate="measured")
    return tnc.plan(bert(), wish, **DATA).digest


def test_a_plan_does_not_depend_on_hash_seeds_or_threads() -> None:
    found = digest()
    assert elsewhere(f"{__name__}:digest") == found and len(found) == 64


def test_fixed_ranks_above_what_is_of_use_are_refused() -> None:
    model = nn.Sequential(nn.Linear(16, 24))
    rule = {"match": "*", "structure": "low-rank", "ranks": {"r": 400}}
    with pytest.raises(PlanError, match="above 16 nothing is gained"):
        tnc.plan(model, spec(rule), example=torch.ones(2, 16))
