"""Subset-norm and subspace momentum: Adam's v, orthogonal residuals, no lost gradient."""

from __future__ import annotations

import pytest
import torch

from tests.unit.optim.stepping import apart, gradients, parameter, run
from tnc.optim.projections import down, top_subspace, up
from tnc.optim.rules.sn_sm import SubsetNormSubspaceMomentum, nearest_divisor


def test_single_entries_have_adams_second_moment() -> None:
    one, two, given = parameter((8, 6)), parameter((8, 6)), gradients((8, 6), 7)
    rule, adam = SubsetNormSubspaceMomentum([one], rank=2, subset_size=1), torch.optim.Adam([two])
    run(rule, one, given)
    run(adam, two, given)
    assert apart(rule.state[one]["subset_sq"].view(8, 6), adam.state[two]["exp_avg_sq"]) < 1e-14


def test_what_is_left_is_orthogonal_to_the_subspace() -> None:
    gradient = gradients((8, 6), 1)[0]
    projector = top_subspace(gradient, 2, 1)
    rest = gradient - up(down(gradient, projector, 1), projector, 1)
    assert float(down(rest, projector, 1).abs().max() / gradient.abs().max()) < 1e-14


@pytest.mark.parametrize("projection", ["svd", "columns"])
@pytest.mark.parametrize("shape", [(8, 6), (6, 8)])
def test_it_is_the_formula_with_refreshes(shape: tuple[int, int], projection: str) -> None:
    """Momentum is zeroed at a refresh and has that step's gradient; the official one loses it."""
    weight, given = parameter(shape), gradients(shape, 11)
    tall = shape[0] >= shape[1]
    w = weight.detach().clone()
    m, v = torch.zeros(0), torch.zeros(16, dtype=torch.float64)
    p = torch.zeros(0)
    for t, g in enumerate(given, 1):
        long = g if tall else g.mT
        if (t - 1) % 4 == 0:
            if projection == "svd":
                p = torch.linalg.svd(long)[2][:2]
            else:
                norms = long.norm(dim=0)
                p = torch.eye(6, dtype=torch.float64)[norms.argsort(descending=True)[:2]]
            m = torch.zeros(8, 2, dtype=torch.float64)
        small = long @ p.mT
        m = 0.9 * m + 0.1 * small
        change = m @ p + long - small @ p
        change = change if tall else change.mT
        v = 0.999 * v + 0.001 * g.reshape(16, 3).square().sum(1)
        root = (v / (1 - 0.999**t)).sqrt() + 1e-8
        w = w - 0.05 * (change.reshape(16, 3) / root[:, None]).reshape(shape)
    rule = SubsetNormSubspaceMomentum(
        [weight], lr=0.05, rank=2, update_every=4, subset_size=3, projection=projection
    )
    assert apart(run(rule, weight, given), w) < 1e-12
    assert rule.state[weight]["taken"] == 9


def test_subsets_divide() -> None:
    for entries in (1, 7, 48, 1536 * 384):
        assert entries % nearest_divisor(entries, None) == 0
    assert nearest_divisor(1536 * 384, None) == 384


def test_what_is_read_is_written() -> None:
    weight = parameter((8, 6))
    rule = SubsetNormSubspaceMomentum([weight], rank=2)
    run(rule, weight, gradients((8, 6), 3))
    state, group = rule.state[weight], rule.param_groups[0]
    again = rule.write(rule.read(state, weight, group), weight, group)
    assert apart(again["subset_sq"], state["subset_sq"]) < 1e-14


def test_a_subspace_is_taken_where_a_bound_state_has_none() -> None:
    weight = parameter((8, 6))
    rule = SubsetNormSubspaceMomentum([weight], rank=2, update_every=100)
    run(rule, weight, gradients((8, 6), 1))
    rule.state[weight].update(rule.start(weight.detach(), rule.param_groups[0]))
    rule.state[weight]["step"] += 30
    run(rule, weight, gradients((8, 6), 1))
    assert rule.state[weight]["taken"] == 32
    assert rule.state[weight]["projector"].norm() > 1
