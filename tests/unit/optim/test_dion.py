"""Dion: at full rank the momentum keeps mu of itself, and a fixed one iterates to its polar."""

from __future__ import annotations

import torch

from tests.unit.optim.given import conditioned, drawn, near, polar_of, run, state
from tnc.optim.rules.dion import Dion


def test_full_rank_leaves_mu_of_the_momentum() -> None:
    for shape in [(12, 7), (7, 12), (8, 8)]:
        made = conditioned(*shape, lowest=0.1)
        _, rule = run(lambda p: Dion(p, rank=12), torch.zeros_like(made), [made])
        near(state(rule)["momentum"], 0.95 * made, 1e-14)


def test_a_fixed_momentum_iterates_to_its_polar_factor() -> None:
    made = conditioned(12, 7, 0.1)
    gradients = [made] + [0.05 * made] * 300  # what a step takes off is given back
    weight, rule = run(lambda p: Dion(p, lr=1.0, rank=7, weight_decay=0), 0 * made, gradients[:-1])
    last, rule = run(lambda p: Dion(p, lr=1.0, rank=7, weight_decay=0), 0 * made, gradients)
    near(state(rule)["momentum"], 0.95 * made, 1e-12)
    near((weight - last) / (12 / 7) ** 0.5, polar_of(made), 1e-7)  # eps beside columns' norms


def test_steps_are_the_formula() -> None:
    start, gradients = conditioned(9, 6, 0.5), drawn(6, 9, 6)
    options = {"lr": 0.1, "rank": 3, "weight_decay": 0.2, "momentum": 0.9}
    found, _ = run(lambda p: Dion(p, **options), start, gradients)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    basis = basis / basis.norm(dim=0)
    weight, momentum = start.clone(), torch.zeros_like(start)
    for gradient in gradients:
        total = momentum + gradient
        left = torch.linalg.qr(total @ basis).Q
        right = total.T @ left
        momentum = total - 0.1 * left @ right.T
        basis = right / (right.norm(dim=0) + 1e-8)
        weight = (1 - 0.1 * 0.2) * weight - 0.1 * (9 / 6) ** 0.5 * left @ basis.T
    near(found, weight, 1e-10)


def test_no_gradient_yet_and_then_one() -> None:
    made = conditioned(5, 4, 0.1)
    found, _ = run(lambda p: Dion(p, rank=2), torch.zeros_like(made), [0 * made, made, made])
    assert bool(torch.isfinite(found).all()) and bool(found.any())
