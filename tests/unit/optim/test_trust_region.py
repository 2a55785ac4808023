"""Trust regions: the three closed forms, dual norms, and Muon as the spectral one."""

from __future__ import annotations

import pytest
import torch

from tests.unit.optim.given import conditioned, drawn, near, polar_of, run
from tnc.errors import BindError
from tnc.optim.rules.muon import Muon
from tnc.optim.rules.trust_region import TrustRegion
from tnc.optim.steepest import NORMS, dual_norm, steepest

MADE = conditioned(12, 7, 0.1)


@pytest.mark.parametrize(
    ("norm", "closed"),
    [
        ("spectral", polar_of(MADE)),
        ("infinity", MADE.sign()),
        ("frobenius", MADE / MADE.norm()),
    ],
)
def test_one_step_is_the_closed_form(norm, closed) -> None:
    start = torch.zeros_like(MADE)
    found, _ = run(lambda p: TrustRegion(p, lr=1.0, norm=norm, exact=True), start, [MADE])
    near(found, -closed, 1e-12)


def test_steps_with_momentum_and_decay_are_the_formula() -> None:
    start = conditioned(12, 7, 0.5, seed=1)
    gradients = drawn(8, 12, 7)
    forms = {"spectral": polar_of, "infinity": torch.sign, "frobenius": lambda m: m / m.norm()}
    for norm, form in forms.items():
        weight, mean = start.clone(), torch.zeros_like(start)
        for gradient in gradients:
            mean = 0.9 * mean + 0.1 * gradient
            weight = (1 - 0.03 * 0.2) * weight - 0.03 * form(mean)
        found, _ = run(
            lambda p, norm=norm: TrustRegion(
                p, lr=0.03, norm=norm, momentum=0.9, weight_decay=0.2, exact=True
            ),
            start,
            gradients,
        )
        near(found, weight, 1e-12)


def test_dual_norms_are_nuclear_one_and_frobenius() -> None:
    values = {
        "spectral": torch.linalg.svdvals(MADE).sum(),
        "infinity": MADE.abs().sum(),
        "frobenius": MADE.norm(),
    }
    for norm in NORMS:
        near(dual_norm(MADE, norm, exact=True), values[norm], 1e-12)
    approximate = float(dual_norm(MADE, "spectral") / values["spectral"])
    assert 0.68 < approximate < 1.16
    assert not bool(steepest(torch.zeros(3, 2), "frobenius").any())
    assert not bool(steepest(torch.zeros(3, 2), "spectral", exact=True).any())


def test_spectral_steps_are_muons_without_look_ahead() -> None:
    start, gradients = torch.zeros(6, 9, dtype=torch.float64), drawn(10, 6, 9)
    muon, _ = run(lambda p: Muon(p, lr=0.1, nesterov=False, weight_decay=0.0), start, gradients)
    ours, _ = run(lambda p: TrustRegion(p, lr=0.1), start, gradients)
    near(ours, muon, 1e-14)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(BindError, match="norm is 'nuclear'"):
        TrustRegion([torch.nn.Parameter(torch.zeros(2))], norm="nuclear")
