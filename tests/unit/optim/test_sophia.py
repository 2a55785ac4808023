"""Sophia: signs without curvature, clipped Newton steps with it."""

from __future__ import annotations

import pytest
import torch

from tests.unit.optim.stepping import apart, gradients, parameter, run
from tnc.errors import BindError
from tnc.optim.rules.sophia import Sophia


def test_without_curvature_steps_are_signs_of_the_momentum() -> None:
    weight, given = parameter((6, 5)), gradients((6, 5), 9)
    expected, m = weight.detach().clone(), torch.zeros(6, 5, dtype=torch.float64)
    for g in given:
        m = 0.965 * m + 0.035 * g
        expected = expected - 0.05 * m.sign()
    found = run(Sophia([weight], lr=0.05, weight_decay=0.0), weight, given)
    assert apart(found, expected) < 1e-15


def test_it_is_the_formula() -> None:
    weight, given = parameter((6, 5)), gradients((6, 5), 12)
    sampled = gradients((6, 5), 4, 3)
    rule = Sophia([weight], lr=0.05, rho=0.1)
    w, m, h = weight.detach().clone(), 0.0, 0.0
    inside = 0
    for t, g in enumerate(given):
        if t % 3 == 0:
            h = 0.99 * h + 0.01 * 40 * sampled[t // 3] ** 2
            weight.grad = sampled[t // 3].clone()
            rule.update_hessian(samples=40)
        m = 0.965 * m + 0.035 * g
        w = (1 - 0.05 * 0.1) * w - 0.05 * m.sign() * (m.abs() / (0.1 * h + 1e-15)).clamp_max(1)
        inside += int((m.abs() < 0.1 * h).sum())
        run(rule, weight, [g])
    assert inside > 20  # not all are clipped
    assert apart(weight.detach(), w) < 1e-14


def test_sampled_labels_give_the_gauss_newton_diagonal() -> None:
    """Logistic regression, whose Gauss-Newton matrix is `X^T diag(p (1 - p)) X`."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, generator=source, dtype=torch.float64)
    weight = parameter((3,))
    rule = Sophia([weight], betas=(0.9, 0.999))
    p = (x @ weight.detach()).sigmoid()
    exact = (x.square() * (p * (1 - p))[:, None]).mean(0)
    for _ in range(4000):
        labels = torch.bernoulli(p, generator=source)
        weight.grad = x.mT @ (p - labels) / 16
        rule.update_hessian(samples=16)
    found = rule.state[weight]["hessian"] / (1 - 0.999**4000)
    assert float((found / exact - 1).abs().max()) < 0.15


def test_samples_are_positive() -> None:
    with pytest.raises(BindError, match="samples is 0"):
        Sophia([parameter((3,))]).update_hessian(samples=0)
