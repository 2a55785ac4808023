"""LANTON: equal noise is Muon; the rates are the formula; noisier layers take shorter steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.optim.given import drawn, near, polar_of
from tnc.errors import BindError
from tnc.optim.rules.lanton import Lanton
from tnc.optim.rules.muon import Muon


def run(optimizer: torch.optim.Optimizer, gradients: list[list[Tensor]]) -> list[Tensor]:
    params = optimizer.param_groups[0]["params"]
    for step in gradients:
        for weight, gradient in zip(params, step):
            weight.grad = gradient.clone()
        optimizer.step()
    return [weight.detach() for weight in params]


def zeros(count: int, *shape: int) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for _ in range(count)]


@pytest.mark.parametrize("against", ["momentum", "previous"])
def test_equal_noise_is_muon(against) -> None:
    gradients = [[g, g, g] for g in drawn(10, 5, 8)]
    options = {"lr": 0.1, "weight_decay": 0.1}
    ours = run(Lanton(zeros(3, 5, 8), against=against, alpha=0.01, **options), gradients)
    muon = run(Muon(zeros(3, 5, 8), nesterov=False, **options), gradients)
    for found, expected in zip(ours, muon):
        near(found, expected, 1e-14)


@pytest.mark.parametrize("against", ["momentum", "previous"])
def test_steps_are_the_formula(against) -> None:
    loud, still = drawn(6, 4, 6, seed=1), drawn(6, 4, 6, seed=2)
    gradients = [[5 * a, b] for a, b in zip(loud, still)]
    lr, mu, beta, alpha = 0.1, 0.9, 0.8, 0.3
    weights = [torch.zeros(4, 6, dtype=torch.float64) for _ in range(2)]
    means = [torch.zeros_like(w) for w in weights]
    noises = [0.0, 0.0]
    for count, step in enumerate(gradients):
        for k, gradient in enumerate(step):
            seen = means[k] if against == "momentum" else gradients[count - 1][k]
            if count:
                size = float(torch.linalg.svdvals(gradient - seen).sum())
                noises[k] = beta * noises[k] + (1 - beta) * size**2
        lengths = [alpha / (alpha**2 + noise) ** 0.5 for noise in noises]
        for k, gradient in enumerate(step):
            means[k] = mu * means[k] + (1 - mu) * gradient
            rate = (lengths[k] / max(lengths)) ** 0.5
            weights[k] = weights[k] - lr * rate * polar_of(means[k])
    rule = Lanton(
        zeros(2, 4, 6), lr=lr, momentum=mu, beta=beta, alpha=alpha, against=against, exact=True
    )
    for found, expected in zip(run(rule, gradients), weights):
        near(found, expected, 1e-7)  # noise and rate are float32
    rates = [float(rule.state[w]["rate"]) for w in rule.param_groups[0]["params"]]
    assert rates[0] < 0.6 and rates[1] == 1.0


def test_wrong_options_are_refused() -> None:
    with pytest.raises(BindError, match="against is 'mean'"):
        Lanton(zeros(1, 2, 2), against="mean")
    with pytest.raises(BindError, match="alpha is 0"):
        Lanton(zeros(1, 2, 2), alpha=0)
