"""Natural GaLore: the preconditioner is the inverse that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.optim.training import gap, gradients, train, weight
from tnc.errors import BindError
from tnc.optim.multilinear import cut, opened, raised
from tnc.optim.rules.natural_galore import NaturalGaLore, natural


@pytest.mark.parametrize("damping", [1e-3, 1.0, 50.0])
def test_it_is_the_dense_inverse_and_woodburys_formula(damping: float) -> None:
    history = torch.stack(gradients(3, 4, count=5))
    h, g = history.reshape(5, 12).T, history[2].reshape(-1)
    found = natural(history, 2, damping).reshape(-1)
    eye = torch.eye(12, dtype=torch.float64)
    assert gap(found, torch.linalg.solve(damping * eye + h @ h.T, g)) < 1e-11
    inner = torch.eye(5, dtype=torch.float64) + h.T @ h / damping
    woodbury = g / damping - h @ torch.linalg.solve(inner, h.T @ g) / damping**2
    assert gap(found, woodbury) < 1e-11


def test_large_gradients_in_float32_keep_their_digits() -> None:
    history = torch.stack(gradients(3, 4, count=5)) * 1e4
    expected = natural(history, 0, 1e-3)
    found = natural(history.float(), 0, 1e-3).double()
    assert gap(found, expected) < 1e-5 * float(expected.abs().max())
    h, g = history.float().reshape(5, 12).T, history[0].float().reshape(-1)
    inner = torch.eye(5) + h.T @ h / 1e-3
    woodbury = g / 1e-3 - h @ torch.linalg.solve(inner, h.T @ g) / 1e-6
    assert gap(woodbury.double(), expected.reshape(-1)) > 1e-2 * float(expected.abs().max())


def naive(start: Tensor, given: list[Tensor], projectors: dict[int, Tensor]) -> list[Tensor]:
    """With projectors that stay; window 4, damping .1, lr .01, scale .25, eps 1e-6."""
    w, m, v, seen, last = start.clone(), 0.0, 0.0, [], []
    for t, g in enumerate(given, start=1):
        c = cut(g, projectors)
        last = [*last, c.reshape(-1)][-4:]
        h = torch.stack(last, 1)
        eye = torch.eye(len(h), dtype=torch.float64)
        n = torch.linalg.solve(0.1 * eye + h @ h.T, c.reshape(-1)).reshape(c.shape)
        m, v = 0.9 * m + 0.1 * n, 0.999 * v + 0.001 * n**2
        u = m / (v**0.5 + 1e-6) * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
        w = w - 0.0025 * raised(u, projectors)
        seen.append(w)
    return seen


@pytest.mark.parametrize("shape", [(9, 6), (6, 4, 5)])
def test_it_is_the_formula(shape: tuple[int, ...]) -> None:
    given = gradients(*shape, count=20)
    w = weight(*shape)
    start = w.detach().clone()
    rule = NaturalGaLore([w], lr=0.01, rank=2, update_every=1000, window=4, damping=0.1)
    seen = train(rule, w, given)
    projectors = opened(rule.state[w]["projectors"], shape, 2)
    assert gap(seen, naive(start, given, projectors)) < 1e-11


def test_the_history_is_brought_to_new_projectors() -> None:
    """What of the old gradients lies in the new subspace is there, in the new coordinates."""
    given = gradients(6, 5, count=4)
    w = weight(6, 5)
    rule = NaturalGaLore([w], rank=3, update_every=3, window=4)
    train(rule, w, given[:3])
    old = opened(rule.state[w]["projectors"], (6, 5), 3)
    before = [raised(c, old) for c in rule.state[w]["history"][:3]]
    train(rule, w, given[3:])
    new = opened(rule.state[w]["projectors"], (6, 5), 3)
    assert gap(new[0], old[0]) > 0.1
    expected = torch.stack([cut(g, new) for g in [*before, given[3]]])
    assert gap(rule.state[w]["history"], expected) < 1e-13


def test_no_damping_is_refused() -> None:
    with pytest.raises(BindError, match=r"damping is 0\.0"):
        NaturalGaLore([weight(4, 4)], damping=0.0)
