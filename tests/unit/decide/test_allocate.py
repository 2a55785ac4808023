"""Allocation: every objective against enumeration, bounds that hold, messages, determinism."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.elsewhere import carried, elsewhere
from tnc.decide.allocation import Choice, Effort, allocate, minimise_cost
from tnc.decide.allocation.branching import branch
from tnc.decide.allocation.knapsack import from_choices
from tnc.decide.allocation.lagrangian import solve_dual
from tnc.errors import InfeasibleBudget, PlanError

EXACT = Effort(gap=0.0)
TOTAL = {"sum": sum, "max": max}


@st.composite
def instances(draw):
    """Draw sites of few candidates with 1 to 3 budgets, integers so that ties and limits bite."""
    rows = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 100_000)))
    top = draw(st.sampled_from([4, 1000]))
    sites = [
        [_choice(rng, rows, top) for _ in range(rng.integers(1, 6))]
        for _ in range(draw(st.integers(1, 5)))
    ]
    least = [sum(min(c.cost[r] for c in site) for site in sites) for r in range(rows)]
    most = [sum(max(c.cost[r] for c in site) for site in sites) for r in range(rows)]
    share = rng.uniform(0, 0.9, rows)
    limits = {
        f"b{r}": float(round(least[r] + share[r] * (most[r] - least[r]))) for r in range(rows)
    }
    return sites, limits


def _choice(rng, rows, top):
    return Choice(
        tuple(float(x) for x in rng.integers(0, top, rows)), float(rng.integers(0, top)) / 3
    )


def _selections(sites, limits):
    for picks in product(*(range(len(site)) for site in sites)):
        chosen = [site[pick] for site, pick in zip(sites, picks)]
        costs = [sum(c.cost[r] for c in chosen) for r in range(len(limits))]
        if all(cost <= limit for cost, limit in zip(costs, limits.values())):
            yield [c.error for c in chosen], costs


def _brute_error(sites, limits, objective):
    return min((TOTAL[objective](e) for e, _ in _selections(sites, limits)), default=inf)


def _is_right(sites, limits, objective, picks, error):
    """Check an answer from the definition: its error is its picks', it fits, none is better."""
    chosen = [site[pick] for site, pick in zip(sites, picks)]
    fits = all(sum(c.cost[r] for c in chosen) <= limit for r, limit in enumerate(limits.values()))
    true = TOTAL[objective](c.error for c in chosen)
    return (
        fits
        and abs(true - error) < 1e-9
        and (error <= _brute_error(sites, limits, objective) + 1e-6)
    )


@pytest.mark.parametrize("objective", ["sum", "max"])
@settings(max_examples=60, deadline=None)
@given(instance=instances())
def test_the_least_error_is_found(objective, instance):
    sites, limits = instance
    if _brute_error(sites, limits, objective) == inf:
        with pytest.raises(InfeasibleBudget):
            allocate(sites, limits, objective=objective)
        return
    found = allocate(sites, limits, objective=objective, effort=EXACT)
    assert _is_right(sites, limits, objective, found.picks, found.error)
    assert found.bound <= found.error + 1e-9 and found.gap <= 1e-6


@pytest.mark.parametrize("objective", ["sum", "max"])
@settings(max_examples=60, deadline=None)
@given(instance=instances(), share=st.floats(0.0, 1.2))
def test_the_least_cost_is_found(objective, instance, share):
    sites, limits = instance
    free = dict(limits, b0=inf)
    worst = TOTAL[objective](max(c.error for c in site) for site in sites)
    bound = share * worst
    costs = [c[0] for e, c in _selections(sites, free) if TOTAL[objective](e) <= bound + 1e-9]
    if not costs:
        with pytest.raises(InfeasibleBudget):
            minimise_cost(sites, "b0", bound, free, objective=objective)
        return
    found = minimise_cost(sites, "b0", bound, free, objective=objective, effort=EXACT)
    assert found.costs[0] == pytest.approx(min(costs), abs=1e-3)
    assert found.error <= bound + 1e-6
    assert found.bound <= found.costs[0] + 1e-9


def test_the_oracle_rejects_wrong_answers():
    site = [Choice((10.0,), 0.0), Choice((4.0,), 1.0), Choice((2.0,), 3.0)]
    limits = {"params": 8.0}
    assert _is_right([site, site], limits, "sum", (1, 1), 2.0)
    assert not _is_right([site, site], limits, "sum", (1, 2), 4.0)
    assert not _is_right([site, site], limits, "sum", (0, 0), 0.0)
    assert not _is_right([site, site], limits, "sum", (1, 1), 1.0)


@settings(max_examples=60, deadline=None)
@given(instance=instances())
def test_the_lagrangian_bounds_from_below_and_its_picks_fit(instance):
    sites, limits = instance
    knapsack = from_choices(
        [[c.error for c in s] for s in sites],
        [[c.cost for c in s] for s in sites],
        list(limits.values()),
    )
    small, offset, scale = knapsack.scaled()
    dual, best = solve_dual(small), _brute_error(sites, limits, "sum")
    if dual.bound == inf:
        assert best == inf
        return
    assert offset + scale * dual.bound <= best + 1e-6
    if dual.picks is not None:
        assert knapsack.fits(dual.picks)
        assert knapsack.value(dual.picks) >= best - 1e-9


@settings(max_examples=60, deadline=None)
@given(instance=instances(), nodes=st.integers(1, 40))
def test_branching_bounds_from_below_and_only_improves(instance, nodes):
    sites, limits = instance
    knapsack = from_choices(
        [[c.error for c in s] for s in sites],
        [[c.cost for c in s] for s in sites],
        list(limits.values()),
    )
    small, offset, scale = knapsack.scaled()
    root = solve_dual(small)
    if root.picks is None:
        return
    found, best = branch(small, root, 0.0, nodes=nodes), _brute_error(sites, limits, "sum")
    assert root.bound <= found.bound <= small.value(found.picks) + 1e-9
    assert offset + scale * found.bound <= best + 1e-6
    assert knapsack.fits(found.picks)
    assert best - 1e-9 <= knapsack.value(found.picks) <= knapsack.value(root.picks) + 1e-9


@settings(max_examples=60, deadline=None)
@given(instance=instances())
def test_dominated_candidates_can_go(instance):
    sites, limits = instance
    knapsack = from_choices(
        [[c.error for c in s] for s in sites],
        [[c.cost for c in s] for s in sites],
        list(limits.values()),
    )
    kept = [
        [c for c, keep in zip(site, row) if keep] for site, row in zip(sites, knapsack.undominated)
    ]
    assert all(kept)
    assert _brute_error(kept, limits, "sum") == _brute_error(sites, limits, "sum")
    assert _brute_error(kept, limits, "max") == _brute_error(sites, limits, "max")


def _model(sites=60, candidates=15, seed=0):
    rng = np.random.default_rng(seed)
    built = []
    for _ in range(sites):
        size, weight = rng.lognormal(8, 1), rng.lognormal(0, 1)
        share = np.sort(rng.uniform(0.05, 1, candidates))
        built.append(
            [Choice((float(round(size)), float(round(9 * size))), 0.0)]
            + [
                Choice(
                    (float(round(size * f)), float(round(9 * size * f * rng.uniform(0.7, 1.5)))),
                    float(weight * (1 - f) ** 2),
                )
                for f in share
            ]
        )
    dense = [sum(site[0].cost[row] for site in built) for row in range(2)]
    return built, {"params": 0.4 * dense[0], "flops": 0.45 * dense[1]}


@pytest.mark.parametrize("objective", ["sum", "max"])
def test_a_model_within_the_gap_and_its_budgets(objective):
    sites, budgets = _model()
    found = allocate(sites, budgets, objective=objective)
    alone = allocate(sites, budgets, objective=objective, effort=Effort(exact=False))
    assert found.gap <= 1e-4
    assert found.error <= alone.error + 1e-9 and alone.bound <= found.error + 1e-9
    for answer in (found, alone):
        assert all(
            cost <= limit * (1 + 1e-9) for cost, limit in zip(answer.costs, budgets.values())
        )


def test_minimal_cost_and_minimal_error_agree():
    sites, budgets = _model()
    least = allocate(sites, budgets, effort=Effort(gap=1e-7))
    back = minimise_cost(sites, "params", least.error * (1 + 1e-9), dict(budgets, params=inf))
    assert back.costs[0] <= least.costs[0] * (1 + 1e-4)


def test_no_limit_takes_the_least_error():
    sites, budgets = _model(5, 4)
    for objective in ("sum", "max"):
        found = allocate(sites, dict.fromkeys(budgets, inf), objective=objective)
        assert found.error == 0.0 and found.picks == (0,) * 5


def test_equal_candidates_and_sites_go_to_the_lower_index():
    site = [Choice((2.0,), 3.0), Choice((4.0,), 1.0), Choice((4.0,), 1.0), Choice((5.0,), 1.0)]
    assert allocate([site, site, site], {"params": 10.0}).picks == (0, 1, 1)


def test_nothing_to_allocate():
    assert allocate([], {"params": 1.0}).picks == ()


def test_one_budget_too_small_names_its_least():
    site = [Choice((4.0, 1.0), 1.0), Choice((2.0, 9.0), 3.0)]
    with pytest.raises(InfeasibleBudget) as caught:
        allocate([site, site], {"params": 3.0, "flops": 100.0})
    assert caught.value.message == "no allocation meets params <= 3"
    assert "params at least 4 with flops kept" in caught.value.hint


@pytest.mark.parametrize("objective", ["sum", "max"])
def test_budgets_that_clash_are_named_together(objective):
    site = [Choice((4.0, 1.0, 1.0), 1.0), Choice((2.0, 9.0, 1.0), 3.0)]
    budgets = {"params": 4.0, "flops": 10.0, "bytes": 50.0}
    with pytest.raises(InfeasibleBudget) as caught:
        allocate([site, site], budgets, objective=objective)
    assert caught.value.message == "no allocation meets params <= 4 with flops <= 10"
    assert "params at least 6 with flops, bytes kept" in caught.value.hint
    assert "flops at least 18 with params, bytes kept" in caught.value.hint
    assert "bytes at least 2 once params, flops can be met" in caught.value.hint


def test_the_tightest_value_that_is_named_is_feasible():
    sites, budgets = _model(20, 6)
    with pytest.raises(InfeasibleBudget) as caught:
        allocate(sites, dict(budgets, params=1.0))
    least = float(caught.value.hint.split("params at least ")[1].split(" ")[0])
    assert allocate(sites, dict(budgets, params=least)).costs[0] <= least
    with pytest.raises(InfeasibleBudget):
        allocate(sites, dict(budgets, params=least - 1))


def test_an_error_bound_that_a_site_cannot_meet():
    sites = [[Choice((1.0,), 2.0)], [Choice((1.0,), 5.0), Choice((2.0,), 4.0)]]
    with pytest.raises(InfeasibleBudget) as caught:
        minimise_cost(sites, "params", 3.0, {"params": inf}, objective="max")
    assert "site 1" in caught.value.where and "at least 4" in caught.value.hint
    with pytest.raises(InfeasibleBudget) as caught:
        minimise_cost(sites, "params", 3.0, {"params": inf})
    assert "error at least 6" in caught.value.hint


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: allocate([[]], {"a": 1.0}), "no candidate"),
        (lambda: allocate([[Choice((1.0,), 0.0)]], {"a": 1.0, "b": 1.0}), "1 costs for 2"),
        (lambda: allocate([[Choice((inf,), 0.0)]], {"a": 1.0}), "not finite"),
        (lambda: allocate([[Choice((1.0,), 0.0)]], {"a": float("nan")}), "not all numbers"),
        (lambda: allocate([[Choice((1.0,), 0.0)]], {"a": 1.0}, objective="mean"), "'mean'"),
        (lambda: minimise_cost([[Choice((1.0,), 0.0)]], "z", 1.0, {"a": 1.0}), "'z'"),
    ],
)
def test_wrong_inputs_are_refused(call, said):
    with pytest.raises(PlanError, match=said):
        call()


def test_the_same_under_another_hash_seed_and_thread_count():
    assert elsewhere(f"{__name__}:picked") == carried(picked())


def picked():
    sites, budgets = _model(40, 10, 3)
    return [allocate(sites, budgets, objective=o).picks for o in ("sum", "max")]


def test_nothing_is_printed(capfd):
    sites, budgets = _model(50, 20, 1)
    allocate(sites, budgets, effort=Effort(gap=1e-6))
    assert capfd.readouterr().out == ""
