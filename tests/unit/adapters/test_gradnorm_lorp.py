"""Golden identities of the weight-normalised adapter, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unit.adapters.single import scatter, single
from tnc.adapters.following import follow
from tnc.adapters.methods.gradnorm_lorp import GradNormLoRP
from tnc.optim import GaLore
from tnc.optim import GradNormLoRP as Rule


def test_rows_have_the_lengths_that_are_trained() -> None:
    one = single(GradNormLoRP())
    assert torch.allclose(one.weight(), one.base, rtol=1e-14, atol=0)
    scatter(one.adapters)
    lengths = one.weight().norm(dim=1)
    assert torch.allclose(lengths, one.delta.extras["magnitude"].abs(), rtol=1e-12, atol=0)


def test_gradients_are_those_of_weight_normalisation() -> None:
    """That of g moves rows along themselves, that of D across; checked against torch's own."""
    one = single(GradNormLoRP())
    scatter(one.adapters)
    one.backward()
    v = one.base + one.delta.cores["D"].detach()
    magnitude = one.delta.extras["magnitude"]
    reference = nn.utils.parametrizations.weight_norm(nn.Linear(7, 9, bias=False).double())
    parts = reference.parametrizations.weight
    parts.original0.data.copy_(magnitude.detach().unsqueeze(1))
    parts.original1.data.copy_(v)
    (reference(one.x) * one.target).sum().backward()
    assert torch.allclose(one.delta.cores["D"].grad, parts.original1.grad, rtol=1e-9, atol=1e-11)
    assert torch.allclose(magnitude.grad, parts.original0.grad.flatten(), rtol=1e-9, atol=1e-11)
    unit = v / v.norm(dim=1, keepdim=True)
    assert float((one.delta.cores["D"].grad * unit).sum(1).abs().max()) < 1e-12
    assert torch.allclose(magnitude.grad, (one.full * unit).sum(1), rtol=1e-9, atol=1e-11)
    before = one.weight()
    with torch.no_grad():
        magnitude -= 0.1 * magnitude.grad
    change = one.weight() - before
    across = change - (change * unit).sum(1, keepdim=True) * unit
    assert float(change.norm()) > 0.1
    assert float(across.norm()) < 1e-12


@pytest.mark.parametrize("steps", [1, 7])
def test_galore_and_adam_are_the_rule_on_the_weight(steps: int) -> None:
    """D in GaLore and g in Adam, with state that survives steps, are `tnc.optim`'s rule on W."""
    options = {"lr": 0.02, "rank": 3, "update_every": 3, "scale": 0.5, "eps": 1e-12}
    one = single(GradNormLoRP())
    galore = GaLore([one.delta.cores["D"]], **options)
    adam = torch.optim.Adam([one.delta.extras["magnitude"]], lr=0.02, eps=1e-12)
    followed = follow(one.adapters, galore, adam)
    weight = nn.Parameter(one.base.clone())
    rule = Rule([weight], **options)
    for step in range(steps):
        for parameter in one.adapters.parameters():
            parameter.grad = None
        target = one.target * (1 + step)
        (one.adapters.model(one.x) * target).sum().backward()
        galore.step()
        adam.step()
        weight.grad = target.T @ one.x
        rule.step()
    assert torch.allclose(one.weight(), weight, rtol=0, atol=1e-9)
    assert followed.steps == steps
    assert float(adam.state[one.delta.extras["magnitude"]]["exp_avg"].norm()) > 0
