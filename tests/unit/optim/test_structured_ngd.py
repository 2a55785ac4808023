"""Structured natural gradient descent: where its factors rest, and a naive re-statement."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tnc.optim.rules.structured_ngd import StructuredNGD, natural_direction, slowed


def positive(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.mT / size + 0.1 * torch.eye(size, dtype=torch.float64)


def damped(factor: Tensor, statistic: Tensor, other: Tensor, others: Tensor) -> Tensor:
    size = len(other)
    unit = torch.eye(len(factor), dtype=torch.float64)
    weight = torch.trace(other.mT @ others @ other) / size
    return 1e-3 * other.square().sum() / size * unit + weight * statistic


def test_a_factor_rests_where_its_square_is_the_inverse() -> None:
    x, d, b = positive(5, 0), positive(3, 1), positive(3, 2)
    s = damped(torch.eye(5).double(), x, b, d)
    a = torch.linalg.inv(torch.linalg.cholesky(s)).mT
    assert float((a.mT @ s @ a - torch.eye(5).double()).abs().max()) < 1e-14
    assert float(natural_direction(a, x, b, d, 1e-3).abs().max()) < 1e-14
    assert float(natural_direction(1.1 * a, x, b, d, 1e-3).abs().max()) > 0.1


def test_factors_reach_their_rest() -> None:
    x, d = positive(4, 0), positive(3, 1)
    a, b = torch.eye(4).double(), torch.eye(3).double()
    for _ in range(2000):
        first = natural_direction(a, x, b, d, 1e-3)
        second = natural_direction(b, d, a, x, 1e-3)
        a, b = a - 0.1 * a @ first, b - 0.1 * b @ second
    for factor, statistic, other, others in ((a, x, b, d), (b, d, a, x)):
        s = damped(factor, statistic, other, others)
        unit = torch.eye(len(factor), dtype=torch.float64)
        assert float((factor @ factor.mT @ s - unit).abs().max()) < 1e-10


def test_it_is_the_formula_over_several_steps() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 3, bias=False).double()
    x, y = torch.randn(7, 4).double(), torch.randn(7, 3).double()
    weight = net.weight.detach().clone()
    rule = StructuredNGD(net.parameters(), net, lr=0.1, lr_factors=0.5, update_every=2)
    a, b = torch.eye(4).double(), torch.eye(3).double()
    ma, mb, ball = torch.zeros_like(a), torch.zeros_like(b), torch.zeros_like(weight)
    for step in range(6):
        rule.zero_grad()
        (net(x) - y).square().sum(-1).mean().backward()
        rule.step()
        errors = 2 * (x @ weight.mT - y)
        gradient = errors.mT @ x / 7
        if step % 2 == 0:
            xx, dd = x.mT @ x / 7, errors.mT @ errors / 7
            na = 0.5 * (a.mT @ damped(a, xx, b, dd) @ a - torch.eye(4).double())
            nb = 0.5 * (b.mT @ damped(b, dd, a, xx) @ b - torch.eye(3).double())
            ma, mb = 0.5 * ma + na, 0.5 * mb + nb
            a, b = a - 0.5 * 0.02 * a @ ma, b - 0.5 * 0.02 * b @ mb
        ball = 0.9 * ball + b @ b.mT @ gradient @ a @ a.mT
        weight = (1 - 0.1 * 0.01) * weight - 0.1 * ball
        assert float((net.weight - weight).detach().abs().max()) < 1e-12


def test_the_rate_of_factors_grows() -> None:
    assert [slowed(step) for step in (1, 100, 101, 499, 500)] == [0.02, 0.02, 0.2, 0.2, 1.0]
