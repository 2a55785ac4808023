"""DCT-AdamW: the transform, the choice, and what a new coordinate does."""

from __future__ import annotations

from math import cos, pi

import pytest
import torch
from torch import Tensor, nn

from tests.unit.optim.training import gap, gradients, train, weight
from tnc.optim.cosines import cosines, from_cosines
from tnc.optim.rules.dct_adamw import DctAdamW
from tnc.optim.selected import reselect


def matrix(n: int) -> Tensor:
    """Return Q: `x @ Q` is the transform of x."""
    rows = [
        [
            (1 / n if k == 0 else 2 / n) ** 0.5 * cos(pi * (2 * j + 1) * k / (2 * n))
            for k in range(n)
        ]
        for j in range(n)
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 30])
def test_the_transform_is_the_matrix_of_cosines_and_orthogonal(n: int) -> None:
    x, q = gradients(4, n, count=1)[0], matrix(n)
    assert gap(q @ q.T, torch.eye(n, dtype=torch.float64)) < 2e-14
    assert gap(cosines(x), x @ q) < 2e-14
    assert gap(from_cosines(x), x @ q.T) < 2e-14
    assert gap(from_cosines(cosines(x)), x) < 2e-14


def test_moving_to_another_choice_is_the_rotation_between_the_bases() -> None:
    """`R = Q_old^T Q_new` has entries 0 and 1, so second moments move exactly too."""
    q = matrix(8)
    old, new = torch.tensor([0, 2, 3, 7]), torch.tensor([1, 2, 5, 7])
    r = q[:, old].T @ q[:, new]
    assert gap(r, r.round()) < 1e-14
    m, v = gradients(5, 4, count=2)
    state = {
        "exp_avg": m,
        "exp_avg_sq": v.square(),
        "index": old.int(),
        "age": torch.full((4,), 9, dtype=torch.int32),
    }
    reselect(state, new.int(), 8)
    assert gap(state["exp_avg"], m @ r) < 1e-13
    assert gap(state["exp_avg_sq"], (v.square() @ r).abs()) < 1e-13
    assert state["age"].tolist() == [0, 9, 0, 9]


def naive(start: Tensor, given: list[Tensor], rank: int, feedback: bool) -> list[Tensor]:
    """Tall matrices, line by line, moments kept for all coordinates; lr .01, wd .1."""
    w, n = start.clone(), start.shape[1]
    q, e = matrix(n), torch.zeros_like(start)
    m, v, age = torch.zeros_like(start), torch.zeros_like(start), [0] * n
    seen = []
    for g in given:
        s = (g + e) @ q
        chosen = s.abs().sum(0).topk(rank).indices.tolist()
        direction = torch.zeros_like(s)
        for k in range(n):
            if k not in chosen:
                m[:, k], v[:, k], age[k] = 0.0, 0.0, 0
                continue
            age[k] += 1
            m[:, k] = 0.9 * m[:, k] + 0.1 * s[:, k]
            v[:, k] = 0.999 * v[:, k] + 0.001 * s[:, k] ** 2
            mean, square = m[:, k] / (1 - 0.9 ** age[k]), v[:, k] / (1 - 0.999 ** age[k])
            direction[:, k] = mean / (square.sqrt() + 1e-8)
        if feedback:
            e = g + e - s[:, chosen] @ q[:, chosen].T
        w = (1 - 0.01 * 0.1) * w - 0.01 * direction @ q.T
        seen.append(w.clone())
    return seen


@pytest.mark.parametrize("feedback", [False, True])
def test_it_is_the_formula(feedback: bool) -> None:
    given = gradients(9, 6, count=25)
    w = weight(9, 6)
    start = w.detach().clone()
    rule = DctAdamW([w], lr=0.01, rank=3, weight_decay=0.1, error_feedback=feedback)
    assert gap(train(rule, w, given), naive(start, given, 3, feedback)) < 1e-12


def test_full_rank_is_adamw_in_the_basis_of_cosines() -> None:
    given, q = gradients(9, 6, count=25), matrix(6)
    w = weight(9, 6)
    turned = nn.Parameter(w.detach() @ q)
    adam = torch.optim.AdamW([turned], lr=0.01, weight_decay=0.1)
    expected = [x @ q.T for x in train(adam, turned, [g @ q for g in given])]
    rule = DctAdamW([w], lr=0.01, rank=6, weight_decay=0.1)
    assert gap(train(rule, w, given), expected) < 1e-12


def test_a_coordinate_that_enters_late_takes_one_step_of_lr_and_no_more() -> None:
    """Debiased by the parameter's 300 steps its first step would be `.1 / sqrt(.001) = 3.16` lr."""
    q = matrix(4)
    first = torch.zeros(6, 4, dtype=torch.float64)
    first[:, 1] = 1.0
    late = torch.zeros_like(first)
    late[:, 2] = -5.0
    w = weight(6, 4)
    rule = DctAdamW([w], lr=0.01, rank=1)
    train(rule, w, [first @ q.T] * 300)
    before = w.detach() @ q
    train(rule, w, [late @ q.T])
    step = w.detach() @ q - before
    assert gap(step[:, 2], torch.full((6,), 0.01, dtype=torch.float64)) < 1e-10
    assert float(step[:, [0, 1, 3]].abs().max()) < 1e-12


def test_error_feedback_loses_nothing() -> None:
    w = weight(9, 6)
    rule = DctAdamW([w], rank=2, error_feedback=True)
    given = gradients(9, 6, count=10)
    for gradient in given:
        before = rule.state[w]["error"].clone() if rule.state[w] else torch.zeros(9, 6).double()
        train(rule, w, [gradient])
        kept, index = rule.state[w]["error"], rule.state[w]["index"].long()
        found = cosines(kept)
        assert float(found[:, index].abs().max()) < 1e-13
        sent = gradient + before - kept
        assert gap(cosines(sent)[:, index], cosines(gradient + before)[:, index]) < 1e-13


def test_a_wide_matrix_is_the_transpose_of_a_tall_one() -> None:
    given = gradients(9, 6, count=20)
    tall, wide = weight(9, 6), nn.Parameter(weight(9, 6).detach().T.contiguous())
    one = train(DctAdamW([tall], rank=2, error_feedback=True), tall, given)
    two = train(DctAdamW([wide], rank=2, error_feedback=True), wide, [g.mT for g in given])
    assert gap(one, [x.T for x in two]) < 1e-12


def test_what_is_read_comes_back() -> None:
    w = weight(6, 9)
    rule = DctAdamW([w], rank=3, update_every=1000)
    train(rule, w, gradients(6, 9))
    state, group = rule.state[w], rule.param_groups[0]
    read = rule.read(state, w, group)
    again = rule.read(state | rule.write(read, w, group), w, group)
    assert gap(again["exp_avg"], read["exp_avg"]) < 1e-13
