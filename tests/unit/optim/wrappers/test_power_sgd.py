"""PowerSGD with ranks by layer: the choice, and torch's hook behind it in one process."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing import get_context

from tnc.errors import BindError
from tnc.optim.wrappers.power_sgd import PowerSGD, choose_ranks, power_sgd


def decaying(seed: int, power: float, m: int = 24, n: int = 16) -> Tensor:
    torch.manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(m, n, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))
    return u * torch.arange(1, n + 1) ** -power @ v.mT


def test_identical_layers_get_identical_ranks() -> None:
    gradient = decaying(0, 0.7)
    found = choose_ranks({f"layer{k}": gradient for k in range(5)}, rank=4)
    assert found == {f"layer{k}": 4 for k in range(5)}


def test_ranks_are_the_best_at_the_price_of_one_rank() -> None:
    gradients = {"flat": decaying(0, 0.1), "steep": decaying(1, 2.0), "bias": torch.ones(4)}
    found = choose_ranks(gradients, rank=3, ranks=range(1, 9))
    assert sum(found.values()) <= 6 and set(found) == {"flat", "steep"}

    def error(ranks: dict[str, int]) -> float:
        return sum(
            float(torch.linalg.svdvals(gradients[k])[r:].square().sum()) for k, r in ranks.items()
        )

    every = [{"flat": a, "steep": b} for a in range(1, 9) for b in range(1, 9) if a + b <= 6]
    assert error(found) <= min(error(ranks) for ranks in every) * (1 + 1e-3)
    assert found["flat"] > found["steep"]
    assert choose_ranks({"bias": torch.ones(4), "thin": torch.ones(9, 1)}) == {}
    with pytest.raises(BindError, match="not finite"):
        choose_ranks({"bad": torch.full((8, 8), float("nan"))})


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 16), nn.Linear(16, 1)).double()


def what_is_sent_and_what_is_left_is_the_gradient() -> None:
    model, twin = net(), net()
    parallel = nn.parallel.DistributedDataParallel(model)
    state = power_sgd(parallel, {"0.weight": 2, "2.weight": 3}, start=2)
    x = torch.randn(8, 12, dtype=torch.float64)
    left = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for step in range(6):
        for made in (model, twin):
            made.zero_grad()
        parallel(x).square().mean().backward()
        twin(x).square().mean().backward()
        for name, parameter in model.named_parameters():
            true = twin.get_parameter(name).grad
            assert parameter.grad is not None and true is not None
            rank = {"0.weight": 2, "2.weight": 3}.get(name, 0)
            if step < 2 or not rank:
                assert torch.allclose(parameter.grad, true, rtol=0, atol=1e-15), (step, name)
                continue
            assert int(torch.linalg.matrix_rank(parameter.grad)) <= rank
            left[name] += true - parameter.grad
        if step >= 2:
            for rank, name in ((2, "0.weight"), (3, "2.weight")):
                kept = next(iter(state.states[rank].error_dict.values()))
                assert torch.allclose(kept, left[name].flatten(), rtol=0, atol=1e-14)
    assert [own.iter for own in state.states.values()] == [6, 6, 6]
    assert state.compression > 1.5


def a_gradient_of_the_rank_is_sent_exactly() -> None:
    model = nn.Linear(10, 8, bias=False).double()
    parallel = nn.parallel.DistributedDataParallel(model)
    power_sgd(parallel, {"weight": 2}, start=2)
    x, d = torch.randn(2, 10).double(), torch.randn(2, 8).double()  # a gradient of rank 2
    for _ in range(3):
        model.zero_grad()
        (parallel(x) * d).sum().backward()
    assert model.weight.grad is not None
    assert torch.allclose(model.weight.grad, d.mT @ x, rtol=0, atol=3e-14)


def what_it_refuses() -> None:
    parallel = nn.parallel.DistributedDataParallel(net())
    with pytest.raises(BindError, match=r"no parameter 'fc\.weight'"):
        PowerSGD(parallel, {"fc.weight": 2}, 10)
    with pytest.raises(BindError, match="start is 1"):
        PowerSGD(parallel, {"0.weight": 2}, 1)


@pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="no gloo"
)
@pytest.mark.parametrize(
    "law",
    [
        what_is_sent_and_what_is_left_is_the_gradient,
        a_gradient_of_the_rank_is_sent_exactly,
        what_it_refuses,
    ],
)
def test_in_a_process_of_its_own(law: Callable[[], None]) -> None:
    """A process group among other tests' threads may wait for ever."""
    process = get_context("forkserver").Process(target=alone, args=(law,))
    process.start()
    process.join(120)
    process.kill()
    assert process.exitcode == 0


def alone(law: Callable[[], None]) -> None:
    """Run a test as the only process of a group."""
    torch.set_num_threads(1)
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    law()
    os._exit(0)  # an ordinary exit may find gloo's threads still running, and abort
