"""GaLore: with a projector that stays it is Adam on an adapter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unit.optim.training import gap, gradients, train, weight
from tnc.optim.rules.galore import GaLore


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_a_projector_that_stays_is_adam_on_b(shape: tuple[int, int]) -> None:
    """`W0 + B P` (or `P^T B`); where Adam adds eps after the debiasing, so eps is 0 here."""
    given = gradients(*shape, count=30)
    w = weight(*shape)
    start = w.detach().clone()
    rule = GaLore([w], lr=0.01, rank=3, update_every=1000, scale=0.25, eps=0.0)
    seen = train(rule, w, given)
    state = rule.state[w]
    p, right = state["projector"], state["right"]
    b = nn.Parameter(torch.zeros_like(state["exp_avg"]))
    adam = torch.optim.Adam([b], lr=0.01 * 0.25, eps=0.0)
    adapters = train(adam, b, [g @ p.T if right else p @ g for g in given])
    assert gap(seen, [start + (a @ p if right else p.T @ a) for a in adapters]) < 1e-12
    assert gap(state["exp_avg"], adam.state[b]["exp_avg"]) < 1e-12
    assert gap(state["exp_avg_sq"], adam.state[b]["exp_avg_sq"]) < 1e-12


def test_full_rank_and_no_refresh_is_adam_in_a_rotated_basis() -> None:
    given = gradients(7, 5, count=30)
    w = weight(7, 5)
    start = w.detach().clone()
    rule = GaLore([w], lr=0.01, rank=5, update_every=1000, scale=1.0, eps=0.0)
    seen = train(rule, w, given)
    p = rule.state[w]["projector"]
    assert gap(p @ p.T, torch.eye(5, dtype=torch.float64)) < 1e-13
    rotated = nn.Parameter(start @ p.T)
    adam = torch.optim.Adam([rotated], lr=0.01, eps=0.0)
    assert gap(seen, [r @ p for r in train(adam, rotated, [g @ p.T for g in given])]) < 1e-12


def test_full_rank_with_a_refresh_is_not_adam_in_a_rotated_basis() -> None:
    """Moments stay in the old coordinates: the identity above needs a projector that stays."""
    given = gradients(7, 5, count=30)
    w = weight(7, 5)
    start = w.detach().clone()
    rule = GaLore([w], lr=0.01, rank=5, update_every=1, scale=1.0, eps=0.0)
    seen = train(rule, w, given)
    rotated = nn.Parameter(start.clone())
    adam = torch.optim.Adam([rotated], lr=0.01, eps=0.0)
    assert gap(seen, train(adam, rotated, given)) > 0.1


def test_the_subspace_is_that_of_the_decomposition_and_is_taken_anew() -> None:
    given = gradients(8, 5, count=5)
    w = weight(8, 5)
    rule = GaLore([w], rank=2, update_every=4)
    train(rule, w, given[:1])
    first = rule.state[w]["projector"]
    vectors = torch.linalg.svd(given[0])[2][:2]
    assert gap(first.T @ first, vectors.T @ vectors) < 1e-12
    train(rule, w, given[1:4])
    assert rule.state[w]["projector"] is first
    train(rule, w, given[4:])
    again = rule.state[w]["projector"]
    vectors = torch.linalg.svd(given[4])[2][:2]
    assert gap(again.T @ again, vectors.T @ vectors) < 1e-12


def test_what_is_read_is_the_momentum_of_the_weight_and_comes_back() -> None:
    w = weight(9, 6)
    rule = GaLore([w], rank=3, update_every=1000)
    given = gradients(9, 6)
    train(rule, w, given)
    state, group = rule.state[w], rule.param_groups[0]
    p = state["projector"]
    mean = torch.zeros(9, 6, dtype=torch.float64)
    for g in given:
        mean.lerp_(g @ p.T @ p, 0.1)
    read = rule.read(state, w, group)
    assert gap(read["exp_avg"], mean) < 1e-13
    again = rule.read(state | rule.write(read, w, group), w, group)
    assert gap(again["exp_avg"], mean) < 1e-13


def test_it_agrees_with_pytorch_optimizer() -> None:
    """That one refreshes at steps 1, gap, 2 gap ...; so with one projector all along."""
    peer = pytest.importorskip("pytorch_optimizer")
    given = [g.float() for g in gradients(9, 6, count=20)]
    ours, theirs = (nn.Parameter(weight(9, 6).detach().float()) for _ in range(2))
    rule = GaLore([ours], lr=0.01, rank=3, update_every=1000, scale=0.5, weight_decay=0.1)
    group = {
        "params": [theirs],
        "rank": 3,
        "update_proj_gap": 1000,
        "scale": 0.5,
        "projection_type": "std",
    }
    other = peer.GaLore([group], lr=0.01, weight_decay=0.1, eps=1e-6)
    assert gap(train(rule, ours, given), train(other, theirs, given)) < 1e-5
