"""Tensor-GaLore: projectors of every axis, and the three things that the release gets wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unit.optim.training import gap, gradients, train, weight
from tnc.optim.multilinear import core_shape, cut, opened, raised, subspaces
from tnc.optim.rules.tensor_galore import TensorGaLore

SHAPES = [(9, 6), (6, 4, 5), (8, 3, 3, 5), (40, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_projectors_that_stay_are_adam_on_the_core(shape: tuple[int, ...]) -> None:
    """`W0 + C x_1 P_1^T ...`: comes back as Adam's step, not as the projected gradient."""
    given = gradients(*shape, count=20)
    w = weight(*shape)
    start = w.detach().clone()
    rule = TensorGaLore([w], lr=0.01, rank=3, update_every=1000, scale=0.25, eps=1e-30)
    seen = train(rule, w, given)
    projectors = opened(rule.state[w]["projectors"], shape, 3)
    core = nn.Parameter(torch.zeros(core_shape(shape, 3), dtype=torch.float64))
    adam = torch.optim.Adam([core], lr=0.0025, eps=1e-30)
    cores = train(adam, core, [cut(g, projectors) for g in given])
    assert gap(seen, [start + raised(c, projectors) for c in cores]) < 1e-12


@pytest.mark.parametrize("shape", [(6, 6), (6, 4, 5), (8, 3, 3, 5)])
def test_a_rank_beyond_all_axes_is_adam(shape: tuple[int, ...]) -> None:
    given = gradients(*shape, count=20)
    one, two = weight(*shape), weight(*shape)
    ours = train(TensorGaLore([one], lr=0.01, rank=40, scale=1.0, eps=0.0), one, given)
    assert gap(ours, train(torch.optim.Adam([two], lr=0.01, eps=0.0), two, given)) < 1e-12


def test_projectors_are_leading_subspaces_and_taken_anew() -> None:
    given = gradients(6, 4, 5, count=5)
    w = weight(6, 4, 5)
    rule = TensorGaLore([w], rank=2, update_every=4)
    train(rule, w, given[:1])
    first = rule.state[w]["projectors"]
    p = opened(first, (6, 4, 5), 2)[0]
    u = torch.linalg.svd(given[0].reshape(6, -1))[0][:, :2]
    assert gap(p.T @ p, u @ u.T) < 1e-12
    train(rule, w, given[1:4])
    assert rule.state[w]["projectors"] is first
    train(rule, w, given[4:])
    p = opened(rule.state[w]["projectors"], (6, 4, 5), 2)[0]
    u = torch.linalg.svd(given[4].reshape(6, -1))[0][:, :2]
    assert gap(p.T @ p, u @ u.T) < 1e-12


def test_a_gradient_of_low_multilinear_rank_is_kept_whole() -> None:
    factors = [torch.linalg.qr(g)[0] for g in gradients(7, 2, count=3)]
    core = gradients(2, 2, 2, count=1, seed=5)[0]
    g = torch.einsum("abc,ia,jb,kc->ijk", core, *factors)
    flat = subspaces(g, 2, torch.zeros(42, dtype=torch.float64))
    projectors = opened(flat, (7, 7, 7), 2)
    assert gap(raised(cut(g, projectors), projectors), g) < 1e-13
    for p in projectors.values():
        assert gap(p @ p.T, torch.eye(2, dtype=torch.float64)) < 1e-13


def test_what_is_read_comes_back() -> None:
    w = weight(6, 4, 5)
    rule = TensorGaLore([w], rank=2, update_every=1000)
    train(rule, w, gradients(6, 4, 5))
    state, group = rule.state[w], rule.param_groups[0]
    read = rule.read(state, w, group)
    again = rule.read(state | rule.write(read, w, group), w, group)
    assert gap(again["exp_avg"], read["exp_avg"]) < 1e-13
