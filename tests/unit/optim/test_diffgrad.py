"""diffGrad: friction, and agreement with the formula and with Adam."""

from __future__ import annotations

import torch

from tests.unit.optim.stepping import apart, gradients, parameter, run
from tnc.optim.rules.diffgrad import DiffGrad


def test_friction_is_one_half_where_the_gradient_stays() -> None:
    """The identity that the first official version met for every gradient, by aliasing."""
    start, gradient = parameter((6, 5)), gradients((6, 5), 1)[0]
    one, two = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    slowed, adam = DiffGrad([one], lr=0.1), torch.optim.Adam([two], lr=0.1)
    run(slowed, one, [gradient])
    run(adam, two, [gradient])
    for _ in range(10):
        before = one.detach().clone(), two.detach().clone()
        half, whole = (
            run(slowed, one, [gradient]) - before[0],
            run(adam, two, [gradient]) - before[1],
        )
        assert apart(half, whole / 2) < 1e-13


def test_it_is_the_formula() -> None:
    weight, given = parameter((6, 5)), gradients((6, 5), 8)
    expected, m, v, last = weight.detach().clone(), 0.0, 0.0, torch.zeros(6, 5)
    for t, g in enumerate(given, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        friction = 1 / (1 + torch.exp(-(last - g).abs()))
        step = friction * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        expected = (1 - 0.05 * 0.1) * expected - 0.05 * step
        last = g
    found = run(DiffGrad([weight], lr=0.05, weight_decay=0.1), weight, given)
    assert apart(found, expected) < 1e-14


def test_friction_follows_changes() -> None:
    weight, given = parameter((6, 5)), gradients((6, 5), 8)
    same = torch.nn.Parameter(weight.detach().clone())
    half = run(DiffGrad([same], lr=0.05), same, [given[0]] * 8)
    assert apart(run(DiffGrad([weight], lr=0.05), weight, given), half) > 1e-3
