"""ASGO and DASGO: every update has the same norm; steps are the formula on either side."""

from __future__ import annotations

import pytest
import torch

from tests.unit.optim.given import drawn, near, run
from tnc.optim.rules.asgo import Asgo
from tnc.optim.rules.dasgo import Dasgo


@pytest.mark.parametrize("kind", [Asgo, Dasgo])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (3, 2, 5)])
def test_every_update_has_the_same_frobenius_norm(kind, shape) -> None:
    weight = torch.zeros(shape, dtype=torch.float64)
    for count in range(1, 5):
        after, _ = run(
            lambda p: kind(p, lr=1.0, weight_decay=0.0),
            torch.zeros_like(weight),
            drawn(4, *shape)[:count],
        )
        before, _ = run(
            lambda p: kind(p, lr=1.0, weight_decay=0.0),
            torch.zeros_like(weight),
            drawn(4, *shape)[: count - 1],
        )
        assert float((after - before).norm()) == pytest.approx(
            0.2 * weight.numel() ** 0.5, rel=1e-12
        )


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_steps_are_the_formula(shape) -> None:
    start, gradients = drawn(1, *shape, seed=1)[0], drawn(8, *shape)
    wide = shape[0] <= shape[1]
    b1, b2, eps, lr, wd = 0.9, 0.8, 1e-6, 0.1, 0.3
    for kind in (Asgo, Dasgo):
        weight, m = start.clone(), torch.zeros_like(start)
        gram = torch.zeros(4, 4, dtype=torch.float64)
        for g in gradients:
            m = b1 * m + (1 - b1) * g
            gram = b2 * gram + (1 - b2) * (g @ g.T if wide else g.T @ g)
            used = gram if kind is Asgo else torch.diag(gram.diagonal())
            values, vectors = torch.linalg.eigh(used + eps * used.trace() / 4 * torch.eye(4))
            root = (vectors * values**-0.5) @ vectors.T
            step = root @ m if wide else m @ root
            step = step * 0.2 * step.numel() ** 0.5 / step.norm()
            weight = (1 - lr * wd) * weight - lr * step
        found, _ = run(
            lambda p, kind=kind: kind(p, lr=lr, betas=(b1, b2), eps=eps, weight_decay=wd),
            start,
            gradients,
        )
        near(found, weight, 1e-10)
    newton, _ = run(lambda p: Asgo(p, lr=lr, roots="newton", weight_decay=wd), start, gradients)
    exact, _ = run(lambda p: Asgo(p, lr=lr, weight_decay=wd), start, gradients)
    near(newton, exact, 1e-8)
