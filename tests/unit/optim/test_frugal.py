"""FRUGAL: its two ends are AdamW and signSGD, and nothing of a gradient is used twice."""

from __future__ import annotations

import pytest
import torch

from tests.unit.optim.training import gap, gradients, train, weight
from tnc.errors import BindError
from tnc.optim.rules.frugal import SUBSPACES, Frugal, inside, outside, remainder


@pytest.mark.parametrize("subspace", ["blocks", "columns"])
@pytest.mark.parametrize("shape", [(9, 6), (6, 4, 5), (7,)])
def test_all_of_it_is_adamw(subspace: str, shape: tuple[int, ...]) -> None:
    given = gradients(*shape, count=25)
    one, two = weight(*shape), weight(*shape)
    rule = Frugal([one], lr=0.01, density=1.0, subspace=subspace, weight_decay=0.1)
    adam = torch.optim.AdamW([two], lr=0.01, weight_decay=0.1)
    assert gap(train(rule, one, given), train(adam, two, given)) < 1e-12


@pytest.mark.parametrize("subspace", SUBSPACES)
def test_none_of_it_is_sign_descent(subspace: str) -> None:
    given = gradients(9, 6, count=25)
    w = weight(9, 6)
    expected, held = [], w.detach().clone()
    for gradient in given:
        held = held * (1 - 0.01 * 0.1) - 0.01 * gradient.sign()
        expected.append(held)
    rule = Frugal([w], lr=0.01, density=0.0, subspace=subspace, weight_decay=0.1)
    assert gap(train(rule, w, given), expected) < 1e-12


@pytest.mark.parametrize("subspace", SUBSPACES)
@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (8, 3, 3, 5)])
def test_the_remainder_has_no_part_in_the_subspace(subspace: str, shape: tuple[int, ...]) -> None:
    w = weight(*shape)
    rule = Frugal([w], density=0.4, subspace=subspace)
    given = gradients(*shape, count=1)
    train(rule, w, given)
    state = rule.state[w]
    small = inside(given[0], state)
    rest = remainder(given[0], small, state)
    assert float(inside(rest, state).abs().max()) < 1e-13
    assert gap(outside(small, given[0], state) + rest, given[0]) < 1e-13
    assert gap(inside(outside(small, given[0], state), state), small) < 1e-13


@pytest.mark.parametrize(("rest", "expected"), [("sign", 0.01), ("none", 0.0), ("sgd", None)])
def test_the_rest_takes_its_own_steps(rest: str, expected: float | None) -> None:
    w = weight(9, 6)
    before = w.detach().clone()
    rule = Frugal([w], lr=0.01, density=0.5, rest=rest, rest_scale=2.0)
    given = gradients(9, 6, count=1)
    train(rule, w, given)
    free = [k for k in range(6) if k not in rule.state[w]["index"].tolist()]
    step = (before - w.detach())[:, free]
    if expected is None:
        assert gap(step, 0.02 * given[0][:, free]) < 1e-14
    else:
        assert gap(step.abs(), torch.full_like(step, 2 * expected)) < 1e-14


def test_adam_starts_anew_with_the_subspace() -> None:
    """Its first step of a period is lr in every entry of the subspace: not 3.2 lr."""
    w = weight(9, 6)
    rule = Frugal([w], lr=0.01, density=0.5, update_every=5, rest="none", eps=0.0)
    drawn = set()
    for step, gradient in enumerate(gradients(9, 6, count=30)):
        before = w.detach().clone()
        train(rule, w, [gradient])
        index = rule.state[w]["index"].long()
        drawn.add(tuple(index.tolist()))
        if step % 5 == 0:
            change = (before - w.detach())[:, index]
            assert gap(change, 0.01 * gradient[:, index].sign()) < 1e-14
    assert len(drawn) > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_makes_no_steps(dtype: torch.dtype) -> None:
    """A gradient within the subspace leaves a remainder of zero, whose sign is zero."""
    u, v = gradients(64, 4, count=2)
    gradient = (u @ v.T).to(dtype)
    w = torch.nn.Parameter(weight(64, 64).detach().to(dtype))
    rule = Frugal([w], density=0.25, subspace="svd")
    train(rule, w, [gradient])
    state = rule.state[w]
    assert float(remainder(gradient, inside(gradient, state), state).abs().max()) == 0


def test_all_blocks_get_their_turn() -> None:
    w = weight(7)
    rule = Frugal([w], density=0.3, update_every=1)
    offsets = set()
    for gradient in gradients(7, count=60):
        train(rule, w, [gradient])
        offsets.add(rule.state[w]["offset"])
    assert offsets == {0, 2, 4, 5}


def test_unknown_words_are_refused() -> None:
    with pytest.raises(BindError, match="subspace is 'rows'"):
        Frugal([weight(4, 4)], subspace="rows")
    with pytest.raises(BindError, match="rest is 'adam'"):
        Frugal([weight(4, 4)], rest="adam")
