"""COAP and Online Subspace Descent against naive restatements."""

from __future__ import annotations

import pytest
import torch

from tests.unit.optim.stepping import apart, gradients, parameter, run
from tnc.optim.projections import top_subspace
from tnc.optim.rules.coap import Coap
from tnc.optim.rules.galore import GaLore
from tnc.optim.rules.online_subspace_descent import OnlineSubspaceDescent


def biased(m: torch.Tensor, v: torch.Tensor, t: int) -> torch.Tensor:
    return (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v.sqrt() + 1e-6)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_online_subspace_descent_is_the_formula(shape: tuple[int, int]) -> None:
    weight, given = parameter(shape), gradients(shape, 10)
    tall = shape[0] >= shape[1]
    w = weight.detach().clone() if tall else weight.detach().clone().mT
    projector = torch.nn.Parameter(top_subspace(given[0] if tall else given[0].mT, 3, 1))
    learner = torch.optim.Adam([projector], lr=0.02, eps=1e-6)
    m = v = torch.zeros(9, 3, dtype=torch.float64)
    for t, gradient in enumerate(given, 1):
        g = gradient if tall else gradient.mT
        p = projector.detach().clone()
        m, v = 0.9 * m + 0.1 * g @ p.mT, 0.999 * v + 0.001 * (g @ p.mT) ** 2
        w = w - 0.05 * 0.25 * biased(m, v, t) @ p
        learner.zero_grad()
        unit = g / g.norm()
        (unit @ projector.mT @ projector - unit).square().sum().backward()
        learner.step()
    rule = OnlineSubspaceDescent([weight], lr=0.05, rank=3, projector_lr=0.02)
    assert apart(run(rule, weight, given), w if tall else w.mT) < 1e-9


def test_a_resting_projector_is_galores() -> None:
    one, two, given = parameter((9, 6)), parameter((9, 6)), gradients((9, 6), 10)
    resting = OnlineSubspaceDescent([one], rank=3, projector_lr=0.0)
    galore = GaLore([two], rank=3, update_every=100)
    assert apart(run(resting, one, given), run(galore, two, given)) < 1e-14
    moving = OnlineSubspaceDescent([three := parameter((9, 6))], rank=3, projector_lr=0.01)
    assert apart(run(moving, three, given), two.detach()) > 1e-4


def test_the_projectors_rate_follows_the_schedule() -> None:
    weight, given = parameter((9, 6)), gradients((9, 6), 4)
    rule = OnlineSubspaceDescent([weight], rank=3, projector_lr=0.01)
    torch.optim.lr_scheduler.LambdaLR(rule, lambda step: 0.0)
    run(rule, weight, given[:1])
    before = rule.state[weight]["projector"].clone()
    run(rule, weight, given[1:])
    assert torch.equal(rule.state[weight]["projector"], before)


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_coap_is_the_formula(shape: tuple[int, int], restore: bool) -> None:
    weight, given = parameter(shape), gradients(shape, 14)
    tall = shape[0] >= shape[1]
    w = weight.detach().clone() if tall else weight.detach().clone().mT
    rule = Coap([weight], lr=0.05, rank=3, update_every=2, refresh_every=5, restore=restore)
    m = v = torch.zeros(9, 3, dtype=torch.float64)
    p = torch.zeros(3, 6)
    for t, gradient in enumerate(given, 1):
        g = gradient if tall else gradient.mT
        if t == 1:
            run(rule, weight, [gradient])
            p = rule.state[weight]["projector"].clone()
            exact = torch.linalg.svd(g)[2][:3]
            assert apart(p.mT @ p, exact.mT @ exact) < 1e-12
        elif (t - 1) % 5 == 0:
            q = torch.linalg.qr(g @ p.mT)[0]
            new = torch.linalg.svd(q.mT @ g, full_matrices=False)[2]
            if restore:
                m, v = m @ p @ new.mT, (v.sqrt() @ p @ new.mT) ** 2
            p = new
        elif (t - 1) % 2 == 0:
            free = p.clone().requires_grad_()
            alike = torch.cosine_similarity((m @ free).flatten(), g.flatten(), dim=0)
            ((g @ free.mT @ free - g).square().mean() * (1 - alike)).backward()
            p = p - 0.1 * free.grad / max(1.0, float(free.grad.norm()))
        m, v = 0.9 * m + 0.1 * g @ p.mT, 0.999 * v + 0.001 * (g @ p.mT) ** 2
        w = w - 0.05 * biased(m, v, t) @ p
        if t > 1:
            run(rule, weight, [gradient])
        assert apart(weight.detach() if tall else weight.detach().mT, w) < 1e-11
