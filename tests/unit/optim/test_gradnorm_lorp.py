"""GradNormLoRP: the gradients are those of the weight-normed matrix, and lengths accumulate."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.unit.optim.training import gap, gradients, train, weight
from tnc.optim.rules.gradnorm_lorp import GradNormLoRP, tangent


def test_the_gradient_of_v_has_no_radial_part_and_is_autograds() -> None:
    v, g = weight(7, 5), gradients(7, 5, count=1)[0]
    a = nn.Parameter(gradients(7, 1, count=1, seed=3)[0])
    norms = v.norm(dim=1, keepdim=True)
    (a * v / norms * g).sum().backward()
    w = (a * v / norms).detach()
    inner, radial = tangent(w, g, w.norm(dim=1, keepdim=True))
    assert float((inner * w).sum(1).abs().max()) < 1e-13
    assert gap(inner * (a / norms).detach(), v.grad) < 1e-13
    assert gap(radial * a.detach().sign(), a.grad) < 1e-13


def test_with_all_directions_it_is_adam_on_the_weight_norm_of_torch(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The subspace is made the identity; at lr .1 some lengths go through zero."""
    module = "tnc.optim.rules.gradnorm_lorp.top_subspace"
    monkeypatch.setattr(module, lambda m, rank, right: torch.eye(rank, dtype=m.dtype))
    given = [g + 3 * weight(7, 5).detach() for g in gradients(7, 5, count=60)]
    layer = nn.Linear(5, 7, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight(7, 5))
    weight_norm(layer)
    adam = torch.optim.Adam(layer.parameters(), lr=0.1, eps=0.0)
    w = weight(7, 5)
    rule = GradNormLoRP([w], lr=0.1, rank=5, scale=1.0, eps=0.0)
    for gradient in given:
        adam.zero_grad()
        (layer.weight * gradient).sum().backward()
        adam.step()
        train(rule, w, [gradient])
        assert gap(w.detach(), layer.weight.detach()) < 1e-10
    assert float(layer.parametrizations.weight.original0.detach().min()) < 0
    assert float(rule.state[w]["stretch"].min()) < 0


def test_the_length_keeps_what_it_learned() -> None:
    """A gradient along each row changes lengths only: by lr a step, step upon step."""
    w = weight(7, 5)
    start = w.detach().norm(dim=1)
    rule = GradNormLoRP([w], lr=0.001, rank=2, eps=1e-30)
    for _ in range(50):
        train(rule, w, [w.detach() / w.detach().norm(dim=1, keepdim=True)])
    assert gap(w.detach().norm(dim=1), start - 50 * 0.001) < 1e-12


def test_weight_decay_shrinks_the_weight() -> None:
    w = weight(7, 5)
    start = w.detach().clone()
    train(GradNormLoRP([w], lr=0.1, rank=2, weight_decay=0.5), w, [torch.zeros_like(start)] * 3)
    assert gap(w.detach(), start * 0.95**3) < 1e-13


def test_a_row_of_zeros_takes_a_plain_step_and_is_normed_from_then_on() -> None:
    w = weight(7, 5)
    with torch.no_grad():
        w[2] = 0.0
    rule = GradNormLoRP([w], lr=0.01, rank=5, scale=1.0)
    seen = train(rule, w, gradients(7, 5, count=5))
    assert all(bool(x.isfinite().all()) for x in seen)
    assert all(float(x[2].norm()) > 0 for x in seen)
