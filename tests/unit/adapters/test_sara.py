"""Golden identities of SaRA, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.laws.adapters_data import CASES
from tests.unit.adapters.single import Single, scatter, single
from tnc.adapters import adapt
from tnc.adapters.following import Followed, follow
from tnc.adapters.methods.sara import SaRA
from tnc.errors import PlanError


def trained(one: Single, steps: int, **options: float) -> tuple[Followed, torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(one.adapters.parameters(), **({"lr": 0.05} | options))
    followed = follow(one.adapters, optimizer)
    for _ in range(steps):
        one.backward()
        optimizer.step()
    return followed, optimizer


def test_the_start_is_exact() -> None:
    one = single(SaRA(share=0.3))
    assert torch.equal(one.weight(), one.base)
    assert torch.equal(one.adapters.model(one.x), one.x @ one.base.T)
    assert one.delta.cores["S"].shape == (19,)


@pytest.mark.parametrize("options", [{"share": 0.3}, {"threshold": 0.4}])
def test_entries_outside_the_mask_keep_every_bit(options: dict[str, float]) -> None:
    one = single(SaRA(**options))
    sizes = one.base.abs()
    bound = sizes.flatten().kthvalue(20).values if "share" in options else 0.4
    mask = sizes < bound
    assert int(mask.sum()) == one.delta.cores["S"].numel()
    trained(one, 5)
    changed = one.weight() != one.base
    assert torch.equal(changed, mask)
    one.adapters.merge()
    merged = one.adapters.unload().weight
    assert torch.equal(merged[~mask], one.base[~mask])


def test_a_threshold_counts_what_it_trains() -> None:
    one = single(SaRA(threshold=0.4))
    delta = one.delta
    count = delta.method.trained(delta.site, lambda: one.base)
    assert count == delta.cores["S"].numel() == int((one.base.abs() < 0.4).sum())


def test_the_gradient_is_that_of_the_masked_entries_and_the_nuclear_norm() -> None:
    one = single(SaRA(threshold=0.4, nuclear=0.7))
    scatter(one.adapters, 0.1)
    weight, mask = one.weight(), one.base.abs() < 0.4
    left, values, right = torch.linalg.svd(weight * mask, full_matrices=False)
    positive = (values > 1e-10).double()
    expected = (one.full + 0.7 * (left * positive) @ right)[mask]
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=1.0)
    follow(one.adapters, optimizer)
    one.backward()
    before = one.delta.cores["S"].detach().clone()
    optimizer.step()
    assert torch.allclose(before - one.delta.cores["S"], expected, rtol=0, atol=1e-10)


def test_one_weight_is_drawn_in_each_step() -> None:
    torch.manual_seed(0)
    model = CASES["linear"].make().double()
    found = adapt(model, SaRA(share=0.5, nuclear=1.0), example=CASES["linear"].draw().double())
    optimizer = torch.optim.SGD(found.parameters(), lr=1e-3)
    follow(found, optimizer, seed=4)
    drawn = []
    for _ in range(12):
        for parameter in found.parameters():
            parameter.grad = torch.zeros_like(parameter)
        before = [p.detach().clone() for p in found.parameters()]
        optimizer.step()
        drawn.append([bool((p != b).any()) for p, b in zip(found.parameters(), before)])
    assert all(sum(step) == 1 for step in drawn)
    assert {step.index(True) for step in drawn} == {0, 1}


def test_reselection_freezes_what_grew_and_keeps_state() -> None:
    one = single(SaRA(threshold=0.4, nuclear=0.0, reselect_every=3))
    followed, optimizer = trained(one, 2)
    core, mask = one.delta.cores["S"], one.base.abs() < 0.4
    count = core.numel()
    one.backward()
    saved = {k: v.clone() for k, v in optimizer.state[core].items()}
    saved["exp_avg"].lerp_(core.grad, 0.1)
    optimizer.step()
    weight = one.weight()
    inside = (weight.abs() < 0.4) & mask
    kept = int(inside.sum())
    assert 0 < kept < count
    assert followed.events == [(3, "weight", f"{kept} of {count} entries are trained on")]
    new = one.delta.cores["S"]
    assert new.shape == (kept,)
    assert torch.equal(one.weight(), weight)
    expected = saved["exp_avg"][inside[mask]]
    assert torch.allclose(optimizer.state[new]["exp_avg"], expected, rtol=1e-14, atol=0)
    assert float(optimizer.state[new]["step"]) == 3
    assert [p is new for g in optimizer.param_groups for p in g["params"]] == [True]
    one.backward()
    optimizer.step()
    assert torch.equal(one.weight() != weight, inside)
    for _ in range(8):  # more reselections: the frozen core grows, nothing is lost
        before = one.weight()
        one.backward()
        optimizer.step()
        moved = one.weight() != before
        assert not bool((moved & ~inside).any())
    assert followed.steps == 12


def test_bad_options() -> None:
    with pytest.raises(PlanError, match="share"):
        SaRA(share=0.0)
    with pytest.raises(PlanError, match=r"no entry of .* is below"):
        single(SaRA(threshold=1e-9))
