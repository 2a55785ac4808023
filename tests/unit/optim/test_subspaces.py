"""Functions of subspaces that move, against autograd and naive restatements."""

from __future__ import annotations

import torch

from tests.unit.optim.stepping import apart, gradients
from tnc.optim.projections import top_subspace
from tnc.optim.rules.coap import correlation_slope
from tnc.optim.subspaces import (
    power_step,
    reconstruction,
    restored_moments,
    rotated_moments,
    sketched_subspace,
)


def orthonormal(rank: int, side: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(gradients((side, rank), 1, seed)[0])[0].mT.contiguous()


def test_reconstruction_is_autograds() -> None:
    matrix, projector = gradients((9, 6), 2)[1], gradients((3, 6), 1, 4)[0].requires_grad_()
    loss = (matrix @ projector.mT @ projector - matrix).square().sum()
    loss.backward()
    error, slope = reconstruction(matrix, projector.detach())
    assert apart(error, loss.detach()) < 1e-14
    assert apart(slope, projector.grad) < 1e-13


def test_leading_singular_vectors_are_stationary() -> None:
    matrix = gradients((9, 6), 2)[1]
    _, slope = reconstruction(matrix, top_subspace(matrix, 3, 1))
    assert float(slope.abs().max() / matrix.square().sum()) < 1e-14
    _, slope = reconstruction(matrix, orthonormal(3, 6, 0))
    assert float(slope.abs().max() / matrix.square().sum()) > 1e-2


def test_the_correlation_slope_is_autograds() -> None:
    matrix, mean = gradients((9, 6), 2)[1], gradients((9, 3), 1, 5)[0]
    projector = gradients((3, 6), 1, 4)[0].requires_grad_()
    whole = mean @ projector
    alike = (whole * matrix).sum() / (whole.norm() * matrix.norm())
    loss = (matrix @ projector.mT @ projector - matrix).square().mean() * (1 - alike)
    loss.backward()
    assert apart(correlation_slope(matrix, projector.detach(), mean), projector.grad) < 1e-13


def test_restoring_to_the_same_subspace_changes_nothing() -> None:
    mean, square = gradients((9, 3), 1)[0], gradients((9, 3), 1, 1)[0].square()
    same = orthonormal(3, 6, 2)
    found = restored_moments(mean, square, same, same)
    assert apart(found[0], mean) < 1e-14
    assert apart(found[1], square) < 1e-14
    other = restored_moments(mean, square, same, orthonormal(3, 6, 3))
    assert apart(other[1], square) > 0.1


def test_permutations_turn_moments_exactly() -> None:
    mean, square = gradients((9, 6), 1)[0], gradients((9, 6), 1, 1)[0].square() + 20
    order, again = torch.randperm(6), torch.randperm(6)
    signs = torch.tensor([1.0, -1, 1, 1, -1, 1], dtype=torch.float64)
    old, new = torch.eye(6, dtype=torch.float64)[order], torch.eye(6, dtype=torch.float64)[again]
    new = new * signs[:, None]
    moved, spread = rotated_moments(mean @ old.mT, square @ old.mT, old, new)
    assert apart(moved, mean @ new.mT) < 1e-15
    assert apart(spread, square @ new.mT.abs()) < 1e-14


def test_a_power_step_is_the_naive_one() -> None:
    matrix, mean, old = gradients((9, 6), 2)[1], gradients((9, 3), 1, 5)[0], orthonormal(3, 6, 1)
    mixed = 0.3 * mean @ old + 0.7 * matrix
    naive = torch.linalg.qr((old @ mixed.mT @ mixed).mT)[0].mT
    found = power_step(matrix, mean, old, 0.3)
    assert apart(found.mT @ found, naive.mT @ naive) < 1e-13
    assert apart(found @ found.mT, torch.eye(3)) < 1e-14


def test_a_sketch_is_exact_where_the_gradient_has_the_rank() -> None:
    matrix = gradients((9, 3), 1)[0] @ gradients((3, 6), 1, 1)[0]
    found, exact = sketched_subspace(matrix, orthonormal(3, 6, 2)), top_subspace(matrix, 3, 1)
    assert apart(found.mT @ found, exact.mT @ exact) < 1e-9
    assert float(reconstruction(matrix, found)[0] / matrix.square().sum()) < 1e-14
