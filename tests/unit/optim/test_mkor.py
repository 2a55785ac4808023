"""MKOR against a naive re-statement, and its inverses against dense ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tnc.errors import BindError
from tnc.optim.rules.mkor import MKOR, rank_one_


def setting() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
    x = torch.randn(8, 5, dtype=torch.float64)
    return net.double(), x, torch.randn(8, 3, dtype=torch.float64)


def test_a_rank_one_update_is_the_inverse() -> None:
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64) / 6
    inverse = root @ root.mT + 0.1 * torch.eye(6, dtype=torch.float64)
    vector = torch.randn(6, dtype=torch.float64)
    before = inverse.clone()
    rank_one_(inverse, vector, 0.95)
    drawn = 0.95 * before + 0.05 * torch.eye(6, dtype=torch.float64)
    wanted = torch.linalg.inv(torch.linalg.inv(drawn) + torch.outer(vector, vector))
    assert float((inverse - wanted).abs().max()) < 1e-14


def test_a_large_factor_is_drawn_to_the_identity_first() -> None:
    inverse = 4.0 * torch.eye(3, dtype=torch.float64)
    rank_one_(inverse, torch.zeros(3, dtype=torch.float64), 1.0)
    assert torch.allclose(inverse, 3.7 * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("rescale", [True, False])
def test_it_is_the_formula_over_several_steps(rescale: bool) -> None:
    net, x, y = setting()
    naive = copy.deepcopy(net)
    options = {"lr": 0.1, "beta": 0.9, "update_every": 2, "momentum": 0.8, "weight_decay": 0.1}
    rule = MKOR(net.parameters(), net, rescale=rescale, **options)  # type: ignore[arg-type]
    factors = [(torch.eye(5).double(), torch.eye(4).double())]
    factors += [(torch.eye(4).double(), torch.eye(3).double())]
    buffers = [torch.zeros_like(p) for p in naive.parameters()]
    for step in range(5):
        rule.zero_grad()
        (net(x) - y).square().sum(-1).mean().backward()
        rule.step()
        hidden = naive[0](x)
        middle = naive[1](hidden)
        out = naive[2](middle)
        loss = (out - y).square().sum(-1).mean()
        weights = [naive[0].weight, naive[2].weight]
        *grads, first, second = torch.autograd.grad(loss, [*weights, hidden, out])
        seen = [(x, first * 8), (middle.detach(), second * 8)]
        with torch.no_grad():
            for k, (weight, gradient) in enumerate(zip(weights, grads)):
                if step % 2 == 0:
                    updated = []
                    for inverse, rows in zip(factors[k], seen[k]):
                        v = rows.mean(0)
                        drawn = 0.9 * inverse + 0.1 * torch.eye(len(v)).double()
                        updated.append(
                            torch.linalg.inv(torch.linalg.inv(drawn) + torch.outer(v, v))
                        )
                    factors[k] = (updated[0], updated[1])
                change = factors[k][1] @ gradient @ factors[k][0]
                if rescale:
                    change *= gradient.norm() / change.norm()
                buffers[k] = 0.8 * buffers[k] + change
                weight.mul_(1 - 0.1 * 0.1).sub_(0.1 * buffers[k])
    for ours, theirs in zip(net.parameters(), naive.parameters()):
        assert float((ours - theirs).detach().abs().max()) < 1e-12


def test_parameters_without_inputs_are_refused_or_plain() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(BindError, match="not the weight of a linear layer"):
        MKOR(net.parameters(), net)
    rule = MKOR(net.parameters(), net, others="plain", momentum=0.0, lr=0.5)
    before = net[0].bias.detach().clone()
    net(torch.ones(1, 3)).sum().backward()
    rule.step()
    assert torch.equal(net[0].bias, before - 0.5)
    with pytest.raises(BindError, match="others is 'skip'"):
        MKOR(net.parameters(), net, others="skip")


def test_a_model_that_is_not_watched_is_an_error() -> None:
    net, x, _ = setting()
    rule = MKOR(net.parameters(), net)
    rule.release()
    net(x).sum().backward()
    with pytest.raises(BindError, match="no weight of a linear layer"):
        rule.step()
    rule.adopt(net)
    with pytest.raises(BindError, match="saw no inputs"):
        rule.step()
    net.zero_grad()
    net(x).sum().backward()
    rule.step()
