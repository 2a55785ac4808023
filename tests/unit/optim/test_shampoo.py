"""Shampoo: its formula, full-matrix AdaGrad for vectors, blocks as parameters, grafted lengths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.unit.optim.given import drawn, near, run, state
from tnc.errors import BindError
from tnc.optim.rules.shampoo import Shampoo

SUMS = {"betas": (0.0, 1.0), "update_every": 1, "graft": "none", "eps": 1e-9}


def power(gram: Tensor, exponent: float, eps: float) -> Tensor:
    values, vectors = torch.linalg.eigh(
        gram + eps * gram.trace() / len(gram) * torch.eye(len(gram))
    )
    return (vectors * values**exponent) @ vectors.T


def test_a_vector_is_full_matrix_adagrad() -> None:
    gradients = drawn(12, 5)
    weight, total = torch.zeros(5, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)
    for gradient in gradients:
        total = total + torch.outer(gradient, gradient)
        weight = weight - 0.1 * power(total, -0.5, 1e-9) @ gradient
    found, _ = run(lambda p: Shampoo(p, lr=0.1, **SUMS), torch.zeros_like(weight), gradients)
    near(found, weight, 1e-9)


def test_a_matrix_is_the_papers_algorithm() -> None:
    start, gradients = torch.zeros(4, 6, dtype=torch.float64), drawn(8, 4, 6)
    weight = start.clone()
    left, right = torch.zeros(4, 4).double(), torch.zeros(6, 6).double()
    for gradient in gradients:
        left, right = left + gradient @ gradient.T, right + gradient.T @ gradient
        step = power(left, -0.25, 1e-9) @ gradient @ power(right, -0.25, 1e-9)
        weight = weight - 0.1 * step
    found, rule = run(lambda p: Shampoo(p, lr=0.1, **SUMS), start, gradients)
    near(found, weight, 1e-9)
    near(state(rule)["gram_0"][0], left, 1e-13)
    found, _ = run(lambda p: Shampoo(p, lr=0.1, **{**SUMS, "roots": "newton"}), start, gradients)
    near(found, weight, 1e-5)


@pytest.mark.parametrize("graft", ["none", "sgd", "adagrad", "adam"])
def test_a_tensor_with_averages_momentum_and_graft_is_the_formula(graft) -> None:
    start, gradients = drawn(1, 3, 4, 1, 5, seed=3)[0], drawn(9, 3, 4, 1, 5)
    first, second, eps, every = 0.8, 0.9, 1e-4, 3
    weight, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    grams = [torch.zeros(d, d).double() for d in (3, 4, 5)]
    roots: list[Tensor] = []
    for count, gradient in enumerate(gradients, 1):
        mean = first * mean + (1 - first) * gradient
        kept = 1.0 if graft == "adagrad" else second
        square = kept * square + (1.0 if graft == "adagrad" else 1 - second) * gradient**2
        g = gradient[:, :, 0]
        for k, spec in enumerate(["ijk,Ijk->iI", "ijk,iJk->jJ", "ijk,ijK->kK"]):
            grams[k] = second * grams[k] + (1 - second) * torch.einsum(spec, g, g)
        if (count - 1) % every == 0:
            gathered = 1 - second**count
            roots = [power(gram / gathered, -1 / 6, eps) for gram in grams]
        m = mean / (1 - first**count)
        step = torch.einsum("ijk,iI,jJ,kK->IJK", m[:, :, 0], *roots).unsqueeze(2)
        held = 1.0 if graft == "adagrad" else 1 - second**count
        lengths = {
            "sgd": m,
            "adagrad": m / (square.sqrt() + 1e-8),
            "adam": m / ((square / held).sqrt() + 1e-8),
        }
        if graft != "none":
            step = step * lengths[graft].norm() / step.norm()
        weight = (1 - 0.1 * 0.2) * weight - 0.1 * step
    found, _ = run(
        lambda p: Shampoo(
            p,
            lr=0.1,
            betas=(first, second),
            eps=eps,
            update_every=every,
            graft=graft,
            weight_decay=0.2,
        ),
        start,
        gradients,
    )
    near(found, weight, 1e-9)


def test_blocks_are_parameters_of_their_own() -> None:
    start, gradients = torch.zeros(6, 10, dtype=torch.float64), drawn(7, 6, 10)
    options = {"lr": 0.1, "update_every": 2}
    found, rule = run(lambda p: Shampoo(p, block=5, **options), start, gradients)
    assert state(rule)["gram_0"].shape == (4, 3, 3) and state(rule)["gram_1"].shape == (4, 5, 5)
    for rows in (slice(0, 3), slice(3, 6)):
        for columns in (slice(0, 5), slice(5, 10)):
            parts = [g[rows, columns] for g in gradients]
            alone, _ = run(lambda p: Shampoo(p, **options), start[rows, columns], parts)
            near(found[rows, columns], alone, 1e-10)


def test_scaling_gradients_changes_nothing_with_sums_or_adams_length() -> None:
    start, gradients = torch.zeros(4, 6, dtype=torch.float64), drawn(5, 4, 6)
    for options in ({"betas": (0.0, 1.0), "graft": "none"}, {"graft": "adam"}):
        one, _ = run(lambda p, o=options: Shampoo(p, **o), start, gradients)
        many, _ = run(lambda p, o=options: Shampoo(p, **o), start, [1e3 * g for g in gradients])
        near(many, one, 1e-6)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(BindError, match="graft is 'lamb'"):
        Shampoo([torch.nn.Parameter(torch.zeros(2))], graft="lamb")
    with pytest.raises(BindError, match="9 axes, more than 8"):
        Shampoo([torch.nn.Parameter(torch.zeros([2] * 9))])
