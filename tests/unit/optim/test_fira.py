"""Fira against its formula, its special cases, and the peer."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.unit.optim.training import gap, gradients, train, weight
from tnc.optim.rules.fira import Fira
from tnc.optim.rules.galore import GaLore


def naive(start: Tensor, given: list[Tensor], rank: int, every: int, scale: float) -> list[Tensor]:
    """Fira of a tall matrix, written line by line; lr .01, betas .9, .999, eps 1e-6."""
    w, m, v, last, held, seen = start.clone(), 0.0, 0.0, None, None, []
    for t, g in enumerate(given, start=1):
        if (t - 1) % every == 0:
            p = torch.linalg.svd(g)[2][:rank]
            if held is not None:  # signs mean nothing, but moments stay
                p = p * torch.sign((p * held).sum(1))[:, None]
            held = p
        small = g @ held.T
        m, v = 0.9 * m + 0.1 * small, 0.999 * v + 0.001 * small**2
        u = m / (v**0.5 + 1e-6)
        left = (g - small @ held) * (u.norm(dim=1) / (small.norm(dim=1) + 1e-8))[:, None]
        if last is not None and left.norm() > 1.01 * (last + 1e-8):
            left = left * (1.01 * (last + 1e-8) / left.norm())
        last = left.norm()
        w = w - 0.01 * scale * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * (u @ held + left)
        seen.append(w)
    return seen


@pytest.mark.parametrize("every", [4, 1000])
def test_it_is_the_formula(every: int) -> None:
    given = [g * (1 + 3 * (t % 3)) for t, g in enumerate(gradients(9, 6, count=20))]
    w = weight(9, 6)
    start = w.detach().clone()
    seen = train(Fira([w], lr=0.01, rank=2, update_every=every, scale=0.5), w, given)
    assert gap(seen, naive(start, given, 2, every, 0.5)) < 1e-12


def test_full_rank_leaves_nothing_and_is_galore() -> None:
    given = gradients(9, 6, count=20)
    one, two = weight(9, 6), weight(9, 6)
    options = {"lr": 0.01, "rank": 6, "update_every": 4}
    ours = train(Fira([one], **options), one, given)  # type: ignore[arg-type]
    assert gap(ours, train(GaLore([two], **options), two, given)) < 1e-12  # type: ignore[arg-type]


def test_the_residual_grows_by_the_limit_at_most_and_lies_outside_the_subspace() -> None:
    w = weight(9, 6)
    rule = Fira([w], rank=2, update_every=1000, limit=1.01)
    norms = []
    for gradient in gradients(9, 6, count=40):
        train(rule, w, [gradient])
        norms.append(float(rule.state[w]["residual_norm"]))
    assert all(after <= 1.01 * (before + 2e-8) for before, after in pairwise(norms))
    assert any(after > 1.0099 * before for before, after in pairwise(norms))


def test_a_wide_matrix_is_the_transpose_of_a_tall_one() -> None:
    given = gradients(9, 6, count=20)
    tall, wide = weight(9, 6), nn.Parameter(weight(9, 6).detach().T.contiguous())
    one = train(Fira([tall], rank=2, update_every=4), tall, given)
    two = train(Fira([wide], rank=2, update_every=4), wide, [g.T.contiguous() for g in given])
    assert gap(one, [x.T for x in two]) < 1e-12


def test_it_agrees_with_pytorch_optimizer() -> None:
    """With scale 1 (see the docstring of Fira) and one projector all along."""
    peer = pytest.importorskip("pytorch_optimizer")
    given = [g.float() for g in gradients(9, 6, count=20)]
    ours, theirs = (nn.Parameter(weight(9, 6).detach().float()) for _ in range(2))
    rule = Fira([ours], lr=0.01, rank=3, update_every=1000, scale=1.0, weight_decay=0.1)
    group = {
        "params": [theirs],
        "rank": 3,
        "update_proj_gap": 1000,
        "scale": 1.0,
        "projection_type": "std",
    }
    other = peer.Fira([group], lr=0.01, weight_decay=0.1, eps=1e-6)
    assert gap(train(rule, ours, given), train(other, theirs, given)) < 1e-5
