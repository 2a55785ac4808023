"""ROOT: what is left of outliers is a clamp; coefficients fit the shape and diverge nowhere."""

from __future__ import annotations

import pytest
import torch

from tests.unit.optim.given import drawn, near, run
from tnc.optim.coefficients import coefficients_for, expected_values
from tnc.optim.matrices import QUINTIC, newton_schulz
from tnc.optim.rules.root import Root, clipped


def test_subtracting_the_soft_threshold_is_a_clamp() -> None:
    g = drawn(1, 30, 20)[0]
    limit = torch.quantile(g.abs().flatten(), 0.9, interpolation="lower") + 1e-9
    outliers = g.sign() * (g.abs() - limit).relu()
    near(clipped(g, 0.9), g - outliers, 1e-15)
    near(clipped(g, 0.9), g.clamp(-limit, limit), 1e-15)
    assert float((outliers != 0).double().mean()) == pytest.approx(0.1, abs=0.005)


def test_steps_are_the_formula() -> None:
    start, gradients = torch.zeros(6, 9, dtype=torch.float64), drawn(5, 6, 9)
    a, b, c = coefficients_for(6, 9)
    weight, buffer = start.clone(), torch.zeros_like(start)
    for gradient in gradients:
        buffer = 0.95 * buffer + gradient
        g = gradient + 0.95 * buffer
        limit = torch.quantile(g.abs().flatten(), 0.9, interpolation="lower") + 1e-9
        x = g.clamp(-limit, limit)
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        weight = (1 - 0.01 * 0.1) * weight - 0.01 * 0.2 * 9**0.5 * x
    found, _ = run(lambda p: Root(p, lr=0.01), start, gradients)
    near(found, weight, 1e-12)


@pytest.mark.parametrize(
    "shape", [(48, 48), (384, 384), (48, 192), (2048, 2048), (4, 1000), (1, 9)]
)
def test_coefficients_fit_the_shape_better_than_muons(shape) -> None:
    found = coefficients_for(*shape)
    assert found == coefficients_for(*shape)

    def mapped(values: torch.Tensor, abc: tuple[float, float, float]) -> torch.Tensor:
        for _ in range(5):
            values = values * (abc[0] + abc[1] * values**2 + abc[2] * values**4)
        return values

    likely = expected_values(*shape)
    ours, theirs = (float((mapped(likely, c) - 1).square().mean()) for c in (found, QUINTIC))
    assert ours < 0.85 * theirs
    every = mapped(torch.linspace(0, 1, 4001, dtype=torch.float64), found)
    assert float(every.min()) > -1e-9 and float(every.max()) < 1.3
    if max(shape) < 400:
        made = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        values = torch.linalg.svdvals(newton_schulz(made, coefficients=found))
        muons = torch.linalg.svdvals(newton_schulz(made))
        assert float((values - 1).square().mean()) < float((muons - 1).square().mean())


def test_expected_singular_values_are_those_of_a_random_matrix() -> None:
    for shape in [(200, 200), (100, 300)]:
        made = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        seen = (torch.linalg.svdvals(made) / made.norm()).flip(0)
        places = (torch.arange(64) + 0.5) / 64 * len(seen)
        near(expected_values(*shape), seen[places.long()], 0.03)
