"""Gram matrices move to cores: the rank side exactly, the long side by the Kronecker model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tnc.binding import bind
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer
from tnc.optim.rules.asgo import Asgo
from tnc.optim.rules.shampoo import Shampoo
from tnc.optim.rules.soap import Soap

ROWS, COLUMNS, STEPS = 6, 9, 12


def settings(kind, **options) -> tuple[list[Tensor], dict, dict]:
    """Train a matrix on given gradients, make it low-rank; return gradients, states, lines."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(COLUMNS, ROWS, bias=False)).double()
    rule = kind(net.parameters(), **options)
    gradients = list(torch.randn(STEPS, ROWS, COLUMNS, dtype=torch.float64))
    for gradient in gradients:
        net[0].weight.grad = gradient.clone()
        rule.step()
    net[0].weight.grad = None
    made = copy.deepcopy(net)
    u, s, v = torch.linalg.svd(net[0].weight.detach(), full_matrices=False)
    text = f"B[o r] A[r i] : i -> o | o={ROWS} r={ROWS} i={COLUMNS}"
    cores = {"B": u * s.sqrt(), "A": s.sqrt()[:, None] * v}
    made[0] = StructuredLayer(Structure.of(parse_network(text)), LinearView(), cores)
    report = bind(net, made, rule, policy="pull").report
    states = {name: rule.state[core] for name, core in made[0].cores.items()}
    lines = {line.parameter.rpartition(".")[2]: line for line in report.lines}
    return gradients, {"state": states, "cores": cores}, lines


def near(a: Tensor, b: Tensor, limit: float = 1e-12) -> None:
    assert a.shape == b.shape
    assert float((a - b).norm()) <= limit * float(b.norm())


def test_the_rank_side_is_that_of_the_cores_own_gradients() -> None:
    gradients, found, lines = settings(Shampoo, betas=(0.9, 1.0), graft="none")
    b, a = found["cores"]["B"], found["cores"]["A"]
    left = sum(g @ g.T for g in gradients)
    right = sum(g.T @ g for g in gradients)
    of_b, of_a = [g @ a.T for g in gradients], [b.T @ g for g in gradients]
    state = found["state"]
    near(state["B"]["gram_1"][0], sum(g.T @ g for g in of_b))
    near(state["A"]["gram_0"][0], sum(g @ g.T for g in of_a))
    near(state["B"]["gram_0"][0], left * (a @ right @ a.T).trace() / right.trace())
    exact = sum(g @ g.T for g in of_b)
    near(state["B"]["gram_0"][0].trace(), exact.trace())
    assert 0.01 < float((state["B"]["gram_0"][0] - exact).norm() / exact.norm()) < 0.7
    assert "gram_1 exact; gram_0 by the Kronecker model" in lines["B"].reason
    assert "gram_0 exact; gram_1 by the Kronecker model" in lines["A"].reason
    assert lines["B"].deed == "moved" and state["B"]["stale"] == 1


def test_asgos_one_side_is_exact_where_the_core_needs_it() -> None:
    """Of a wide weight the rows' Gram matrix is known: A's rank side is exact, B's is modelled."""
    _, found, lines = settings(Asgo, betas=(0.9, 0.8))
    assert "gram exact" in lines["A"].reason
    assert "gram by the Kronecker model" in lines["B"].reason
    assert found["state"]["A"]["gram"].shape == (ROWS, ROWS)


@pytest.mark.parametrize("vectors", [False, True])
def test_soap_takes_bases_from_what_moved(vectors) -> None:
    _, found, lines = settings(Soap, vectors=vectors)
    for name, state in found["state"].items():
        assert "exact" in lines[name].reason
        for mode in (0, 1):
            gram, basis = state[f"gram_{mode}"], state[f"basis_{mode}"]
            turned = basis.T @ gram @ basis
            near(torch.diag(turned.diagonal()), turned, 1e-10)
        assert float(state["exp_avg_sq"].min()) > 0
