"""EVA: the rows of A keep most of the inputs."""

from __future__ import annotations

import torch
from torch import nn

import tnc
from tests.unit.adapters.starts import drawn, near, parts_of, site_of
from tnc.adapters.methods.eva import EVA


def test_rows_are_the_leading_right_singular_vectors_of_the_inputs() -> None:
    x = drawn(40, 9) * torch.arange(1, 10)
    cores = parts_of(EVA(rank=3), drawn(7, 9), moment=x.T @ x / 40).cores
    _, _, right = torch.linalg.svd(x, full_matrices=False)
    a = cores["A"]
    assert near(a.T @ a, right[:3].T @ right[:3], 1e-10) and not cores["B"].any()
    assert near(a @ a.T, torch.eye(3).double())
    first = a[0] @ right[0]
    assert abs(abs(float(first)) - 1) < 1e-10, "largest first"
    kept = float((x @ a.T).norm())
    others = [torch.linalg.qr(drawn(9, 3, seed=s))[0] for s in range(1, 20)]
    assert all(kept > float((x @ q).norm()) for q in others)


def test_of_a_model() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.Flatten(), nn.Linear(60, 5)).double()
    x = drawn(8, 3, 10)
    tuned = tnc.adapt(net, "eva{rank=2}", calibration=[x[:4], x[4:]])
    assert torch.equal(tuned.model(x), net(x))
    hidden = net[:2](x).detach()
    _, _, right = torch.linalg.svd(hidden, full_matrices=False)
    a = tuned.deltas()["2.weight"].cores["A"].detach()
    assert near(a.T @ a, right[:2].T @ right[:2], 1e-7)


def test_diagonals_experts_and_refusals() -> None:
    diagonal = torch.tensor([1.0, 5.0, 2.0, 7.0]).double()
    cores = parts_of(EVA(rank=2), drawn(6, 4), moment=diagonal).cores
    assert torch.equal(cores["A"], torch.eye(4).double()[[3, 1]])
    site = site_of(3, 6, 4, op="experts", outputs=2)
    x = drawn(10, 4)
    stack = parts_of(EVA(rank=2), drawn(3, 6, 4), site, moment=x.T @ x).cores["A"]
    assert stack.shape == (3, 2, 4) and torch.equal(stack[0], stack[2])
    assert "numbers of rows" in EVA(rank=2).refuses(site_of(11, 6, op="embedding"))
