"""PiSSA: the start is the weight's best part, kept as frozen factors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tests.unit.adapters.starts import best, drawn, near, parts_of, site_of
from tnc.adapters.methods.pissa import PiSSA
from tnc.errors import PlanError


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_start_is_the_principal_part(alpha: float | None, shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    method = PiSSA(rank=3, alpha=alpha)
    factor = (alpha or 3) / 3
    cores = parts_of(method, weight).cores
    b, a = cores["B"], cores["A"]
    assert near(factor * b @ a, best(weight, 3))
    assert torch.equal(cores["B0"], -b) and torch.equal(cores["A0"], a)
    values = torch.linalg.svdvals(weight)[:3]
    for gram in (b.T @ b, a @ a.T):  # balanced, with the singular values in equal parts
        assert near(gram, torch.diag(values / factor))


def test_outputs_are_those_of_the_base() -> None:
    net = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5))
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    tuned = tnc.adapt(net, "pissa{rank=2, alpha=5}", example=x)
    assert float((tuned.model(x) - net(x)).abs().max()) < 1e-5
    before = {name: p.clone() for name, p in net.named_parameters()}
    loss = tuned.model(x).square().sum()
    loss.backward()
    torch.optim.SGD(tuned.parameters(), lr=0.1).step()
    assert float((tuned.model(x) - net(x)).abs().max()) > 1e-3
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    frozen = tuned.deltas()["0.weight"].cores["A0"]
    trained = tuned.deltas()["0.weight"].cores["A"]
    assert not torch.equal(frozen, trained), "the frozen start has memory of its own"


def test_experts_have_parts_of_their_own() -> None:
    weight = drawn(3, 6, 8)
    cores = parts_of(PiSSA(rank=2), weight, site_of(3, 6, 8, op="experts", outputs=2)).cores
    assert near(cores["B"] @ cores["A"], best(weight, 2))


def test_randomised_start() -> None:
    weight = drawn(40, 30) @ torch.diag(0.7 ** torch.arange(30.0, dtype=torch.float64))
    exact = best(weight, 4)
    errors = []
    for niter in (0, 1, 4):
        cores = parts_of(PiSSA(rank=4, niter=niter), weight).cores
        errors.append(float((cores["B"] @ cores["A"] - exact).norm()))
        again = parts_of(PiSSA(rank=4, niter=niter), weight).cores
        assert torch.equal(cores["B"], again["B"])
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5 * float(exact.norm())
    other = parts_of(PiSSA(rank=4, niter=0), weight, seed=1).cores["B"]
    assert not torch.equal(other, parts_of(PiSSA(rank=4, niter=0), weight).cores["B"])


def test_global_random_numbers_play_no_part() -> None:
    state = torch.get_rng_state()
    parts_of(PiSSA(rank=4, niter=2), drawn(20, 10))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_minor_part() -> None:
    weight = drawn(9, 7)
    cores = parts_of(PiSSA(rank=2, part="minor"), weight).cores
    assert near(cores["B"] @ cores["A"], weight - best(weight, 5))
    for wrong in ({"niter": 2}, {"by": "qr"}):
        with pytest.raises(PlanError, match="minor part"):
            PiSSA(part="minor", **wrong)  # type: ignore[arg-type]


def test_by_qr() -> None:
    weight = drawn(9, 7)
    basis, rows = torch.linalg.qr(weight)
    cores = parts_of(PiSSA(rank=3, alpha=6.0, by="qr"), weight).cores
    assert near(cores["B"], basis[:, :3]) and near(2 * cores["A"], rows[:3])
    assert torch.equal(cores["B0"], -cores["B"]) and torch.equal(cores["A0"], cores["A"])
    full = parts_of(PiSSA(rank=7, by="qr"), weight).cores
    assert near(full["B"] @ full["A"], weight)
