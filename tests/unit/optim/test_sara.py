"""SARA: which vectors are drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.optim.training import gap, gradients, train, weight
from tnc.optim.projections import sampled, sampled_subspace, top_subspace
from tnc.optim.rules.galore import GaLore
from tnc.optim.rules.sara import Sara


def with_values(values: list[float]) -> tuple[Tensor, Tensor]:
    """Return a matrix with singular values and its right vectors as rows."""
    u, _, v = torch.linalg.svd(gradients(9, len(values), count=1)[0], full_matrices=False)
    return u * torch.tensor(values, dtype=torch.float64) @ v, v


@pytest.mark.parametrize("seed", range(20))
def test_a_dominant_vector_is_always_drawn(seed: int) -> None:
    matrix, vectors = with_values([1e9, 1.0, 1.0, 1.0, 1.0])
    found = sampled_subspace(matrix, 2, 1, torch.Generator().manual_seed(seed))
    assert gap((found[0] @ vectors[0]).abs(), torch.ones((), dtype=torch.float64)) < 1e-9
    assert gap(found @ found.T, torch.eye(2, dtype=torch.float64)) < 1e-12


def test_full_rank_is_galore() -> None:
    given = gradients(9, 6, count=20)
    one, two = weight(9, 6), weight(9, 6)
    options = {"lr": 0.01, "rank": 6, "update_every": 4}
    ours = train(Sara([one], **options), one, given)  # type: ignore[arg-type]
    assert gap(ours, train(GaLore([two], **options), two, given)) == 0  # type: ignore[arg-type]


def test_vectors_are_drawn_by_their_singular_values() -> None:
    """One of three: probabilities 1/2, 1/3, 1/6; of 3,000 draws within 4 standard errors."""
    weights = torch.tensor([3.0, 2.0, 1.0])
    counts = torch.zeros(3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3000):
        counts[sampled(weights, 1, generator)] += 1
    expected = weights / weights.sum()
    error = (expected * (1 - expected) / 3000).sqrt()
    assert ((counts / 3000 - expected).abs() < 4 * error).all()


def test_draws_differ_between_seeds_and_refreshes() -> None:
    given = gradients(9, 6, count=1) * 5
    found = []
    for seed in (0, 1):
        w = weight(9, 6)
        rule = Sara([w], rank=2, update_every=1, seed=seed)
        for gradient in given:
            train(rule, w, [gradient])
            p = rule.state[w]["projector"]
            found.append(p.T @ p)
    assert any(gap(found[0], other) > 0.1 for other in found[1:5])
    assert any(gap(a, b) > 0.1 for a, b in zip(found[:5], found[5:]))


def test_no_vector_of_a_singular_value_of_zero_is_drawn_while_others_remain() -> None:
    matrix, _ = with_values([2.0, 1.0, 0.0, 0.0])
    for seed in range(10):
        found = sampled_subspace(matrix, 2, 1, torch.Generator().manual_seed(seed))
        top = top_subspace(matrix, 2, 1)
        assert gap(found.T @ found, top.T @ top) < 1e-6
