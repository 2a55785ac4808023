"""Every allocator: budgets are met, plans repeat, infeasible budgets name the tightest."""

from __future__ import annotations

from itertools import product
from math import sqrt

import pytest
import torch
from torch import nn

import tnc
from tests.compiled import spec
from tests.elsewhere import elsewhere
from tests.zoo import case
from tnc.decide.allocation.buckets import cheapest_by_error
from tnc.decide.pipeline import allocators
from tnc.decide.spec_problems import SpecProblems
from tnc.errors import InfeasibleBudget, PlanError
from tnc.sources import evaluations

ALL = tuple(allocators.all())
RULE = {"match": "*layer*", "op": "linear", "structure": "low-rank"}
BATCHES = tuple(case("bert").inputs(seed)[1] for seed in range(4))
DATA = {"calibration": BATCHES, "evaluation": evaluations.get("output")()}


def planned(allocate: str, params: float = 0.5, **options: object) -> tnc.Plan:
    budget = {"scope": "encoder.*", "params": params}
    wish = spec(RULE, budget=budget, allocate=allocate, **options)
    return tnc.plan(case("bert").build(0), wish, **DATA)


@pytest.mark.parametrize("name", ALL)
def test_budgets_are_met_nearly_filled_and_errors_are_known(name: str) -> None:
    plan = planned(name)
    assert 0.4 * plan.scope.dense_params < plan.scope.params <= 0.5 * plan.scope.dense_params
    assert all(entry.error >= 0 for entry in plan.entries)


@pytest.mark.parametrize("name", ALL)
def test_an_infeasible_budget_is_told(name: str) -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        planned(name, 0.001)
    if name != "uniform":
        assert "the least that can be met" in caught.value.message


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("surrogate", "measured")])
def test_a_bound_on_the_error_is_refused_where_costs_are_filled(name: str) -> None:
    wish = spec(RULE, budget={"scope": "encoder.*", "error": 1e-3}, metric="both", allocate=name)
    with pytest.raises(PlanError, match="bound on the error"):
        tnc.plan(case("bert").build(0), wish, **DATA)


def test_plans_are_the_same_with_other_threads_and_hash_seeds() -> None:
    for name in ("alds", "energy", "l-greco"):
        told = elsewhere(f"{__name__}:small", name)
        assert told == small(name) and "A[r i]" in str(told)


def small(name: str) -> list[str]:
    """Return the structures of a plan of a small network, without calibration."""
    wish = spec({"match": "*", "structure": "low-rank"}, budget={"params": 0.6}, metric="none",
                allocate=name)  # fmt: skip
    plan = tnc.plan(net(), wish, example=torch.ones(2, 24))
    return [str(entry.structure) for entry in plan.entries]


@pytest.mark.parametrize("text", ["alds{seeds=3}", "l-greco{buckets=0}", "probed{sizes=1}",
                                  "measured{shortlist=[nothing]}", "nothing"])  # fmt: skip
def test_wrong_options_are_told(text: str) -> None:
    with pytest.raises(SpecProblems):
        spec(RULE, budget={"params": 0.5}, allocate=text)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(),
                         nn.Linear(16, 12))  # fmt: skip


def test_alds_is_the_least_largest_norm_over_groups_and_ranks() -> None:
    """An oracle of its own: every combination of groups and ranks of three layers."""
    model, share = net(), 0.6
    rule = {"match": "*", "structure": "grouped-low-rank"}
    made = tnc.compile(model, spec(rule, budget={"scope": "*weight", "params": share},
                                   metric="none", allocate="alds"),
                       example=torch.ones(2, 24))  # fmt: skip
    tables = []
    for place in (0, 2, 4):
        weight = model[place].weight.detach().double()
        rows, columns = weight.shape
        whole = float(torch.linalg.matrix_norm(weight, 2))
        table = [(rows * columns, 0.0)]
        for groups in (k for k in range(1, columns) if columns % k == 0):
            parts = [torch.linalg.svdvals(part) for part in weight.chunk(groups, dim=1)]
            for rank in range(1, len(parts[0]) + 1):
                tail = max(float(p[rank]) if rank < len(p) else 0.0 for p in parts)
                table.append((rank * (groups * rows + columns), sqrt(groups) * tail / whole))
        tables.append([pair for pair in table if pair[0] <= rows * columns])
    limit = share * sum(table[0][0] for table in tables)
    thresholds = sorted({error for table in tables for _, error in table})

    def least(threshold: float) -> int:
        return sum(min(c for c, e in table if e <= threshold) for table in tables)

    best = next(t for t in thresholds if least(t) <= limit)
    found = float(made.plan.entries[0].reason.split("norm error ")[1].rstrip(")"))
    assert found == pytest.approx(best, rel=1e-3)
    for place in (0, 2, 4):
        old, new = model[place].weight.detach(), made.model[place].weight.detach()
        gap = torch.linalg.matrix_norm(old - new, 2) / torch.linalg.matrix_norm(old, 2)
        assert float(gap) <= best * (1 + 1e-4)


def test_buckets_find_the_optimum_within_their_width() -> None:
    torch.manual_seed(0)
    errors = torch.rand(5, 4).tolist()
    costs = torch.randint(1, 20, (5, 4)).tolist()
    limit = sum(sorted(row)[1] for row in costs)
    every = [
        sum(row[k] for row, k in zip(errors, picks))
        for picks in product(range(4), repeat=5)
        if sum(row[k] for row, k in zip(costs, picks)) <= limit
    ]
    picks, found = cheapest_by_error(errors, costs, limit, 5.0, 10_000)
    assert sum(row[k] for row, k in zip(costs, picks)) <= limit
    assert min(every) <= found <= min(every) + 5 * 5.0 / 10_000
