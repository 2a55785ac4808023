"""LoRA-GA: the first step of the factors moves W by the best rank-2r part of the gradient."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.unit.adapters.starts import best, drawn, near, parts_of, site_of
from tnc.adapters.methods.lora_ga import LoRAGA
from tnc.adapters.start import Parts
from tnc.errors import PlanError

DIRECTIONS = ("ArB2r", "A2rBr", "ArBr", "random")
SCALES = ("stable", "gd", "unit", "weight")
every = pytest.mark.parametrize(("direction", "scale"), product(DIRECTIONS, SCALES))


def first_step(parts: Parts, gradient: Tensor, factor: float) -> Tensor:
    """What a small SGD step of B and A at rate one does to W, to first order, negative."""
    b, a = parts.cores["B"], parts.cores["A"]
    return factor**2 * (b @ b.mT @ gradient + gradient @ a.mT @ a)


def sizes(weight: Tensor, factor: float, rank: int) -> dict[str, float]:
    """k of every scale, from its formula: both factors are k times orthonormal ones."""
    return {
        "stable": len(weight) ** 0.25 / 16**0.5,
        "gd": 1 / factor,
        "unit": 1.0,
        "weight": float((torch.linalg.svdvals(weight)[:rank].mean() / factor) ** 0.5),
    }


@every
@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_first_step_is_the_best_part_of_the_gradient(
    direction: Any, scale: Any, shape: tuple[int, int]
) -> None:
    weight, gradient = drawn(*shape), drawn(*shape, seed=1)
    method = LoRAGA(rank=3, alpha=7.0, direction=direction, scale=scale)
    factor = 7.0 / 3
    parts = parts_of(method, weight, gradient=gradient)
    c = factor**2 * sizes(weight, factor, 3)[scale] ** 2
    assert near(first_step(parts, gradient, factor), c * best(gradient, 6))
    if scale == "gd":
        assert abs(c - 1) < 1e-12


@every
def test_start_cancels_exactly(direction: Any, scale: Any) -> None:
    weight, gradient = drawn(9, 8), drawn(9, 8, seed=1)
    method = LoRAGA(rank=2, direction=direction, scale=scale)
    cores = parts_of(method, weight, gradient=gradient).cores
    assert torch.equal(cores["B0"], -cores["B"])
    assert torch.equal(cores["A0"], cores["A"])
    assert float((cores["B"] @ cores["A"]).norm()) > 0.01


def test_factors_of_the_same_vectors_miss_it() -> None:
    """The oracle sees what PEFT 0.21's `random` does: the same places for both factors."""
    gradient = drawn(16, 12)
    parts = parts_of(LoRAGA(rank=3, scale="unit"), drawn(16, 12, seed=1), gradient=gradient)
    left, _, _ = torch.linalg.svd(gradient, full_matrices=False)
    same = Parts({"B": left[:, :3], "A": parts.cores["A"]})
    assert not near(first_step(same, gradient, 1.0), best(gradient, 6), 0.1)
    assert near(first_step(parts, gradient, 1.0), best(gradient, 6))


@pytest.mark.parametrize("scale", SCALES)
def test_every_expert_has_its_own_vectors(scale: Any) -> None:
    weight, gradient = drawn(3, 8, 6), drawn(3, 8, 6, seed=1)
    site = site_of(3, 8, 6, op="experts", outputs=2)
    parts = parts_of(LoRAGA(rank=2, scale=scale), weight, site, gradient)
    for e in range(3):
        k = sizes(weight[e], 1.0, 2)[scale]
        own = Parts({name: core[e] for name, core in parts.cores.items()})
        assert near(first_step(own, gradient[e], 1.0), k * k * best(gradient[e], 4))


def test_kernel_of_a_convolution_lies_in_a() -> None:
    weight, gradient = drawn(8, 4, 3, 3), drawn(8, 4, 3, 3, seed=1)
    cores = parts_of(LoRAGA(rank=2, scale="unit"), weight, gradient=gradient).cores
    assert cores["A"].shape == (2, 4, 3, 3) and cores["B"].shape == (8, 2)
    flat = Parts({"B": cores["B"], "A": cores["A"].reshape(2, -1)})
    whole = gradient.reshape(8, -1)
    assert near(first_step(flat, whole, 1.0), best(whole, 4))


def test_a_step_of_sgd_on_a_model_with_the_mean_gradient_of_its_batches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7)).double()
    batches = [drawn(5, 9, seed=s) for s in range(3)]

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        return (output - 1).square().mean()

    mean = sum(loss(net(x), x) for x in batches) / 3
    wanted = torch.autograd.grad(mean, net[0].weight)[0]
    spec = "lora-ga{rank=2, scale=unit}"
    tuned = tnc.adapt(net, spec, match="0", calibration=batches, loss=loss)
    before = tuned.weight("0.weight").detach().clone()
    rate = 1e-7
    optimizer = torch.optim.SGD(tuned.parameters(), lr=rate)
    (sum(loss(tuned.model(x), x) for x in batches) / 3).backward()
    optimizer.step()
    moved = (before - tuned.weight("0.weight").detach()) / rate
    assert near(moved, best(wanted, 4), 1e-6)
    assert not near(moved, best(wanted, 3), 1e-2)


def test_randomised_vectors_come_near() -> None:
    decaying = drawn(40, 30) @ torch.diag(0.6 ** torch.arange(30.0, dtype=torch.float64))
    weight = drawn(40, 30, seed=1)
    method = LoRAGA(rank=3, scale="unit", niter=4)
    parts = parts_of(method, weight, gradient=decaying)
    assert near(first_step(parts, decaying, 1.0), best(decaying, 6), 1e-6)


def test_refusals() -> None:
    weight = drawn(6, 6)
    assert "twice the rank" in LoRAGA(rank=4).refuses(site_of(6, 6))
    with pytest.raises(PlanError, match="needs the gradient"):
        parts_of(LoRAGA(rank=2), weight)
    with pytest.raises(PlanError, match="zero on all calibration batches"):
        parts_of(LoRAGA(rank=2), weight, gradient=torch.zeros(6, 6))
    with pytest.raises(PlanError, match="not finite"):
        parts_of(LoRAGA(rank=2), weight, gradient=weight / 0)
    with pytest.raises(PlanError, match="gamma is 0"):
        LoRAGA(gamma=0)
