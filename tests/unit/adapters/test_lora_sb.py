"""LoRA-SB: the start is the best low-rank part of the first step of sign descent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.unit.adapters.starts import best, drawn, near, parts_of, site_of
from tnc.adapters.methods.lora_sb import LoRASB
from tnc.adapters.methods.lora_xs import LoRAXS
from tnc.errors import PlanError


def squares(output: Tensor, batch: Tensor) -> Tensor:
    return (output - 1).square().mean()


@pytest.mark.parametrize("alpha", [None, 7.0])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_start_is_the_best_part_of_the_step(alpha: float | None, shape: tuple[int, int]) -> None:
    weight, gradient = drawn(*shape), drawn(*shape, seed=1)
    cores = parts_of(LoRASB(rank=3, alpha=alpha, step=1e-3), weight, gradient=gradient).cores
    wanted = best(-1e-3 * gradient.sign(), 3)
    assert near((alpha or 3) / 3 * cores["B"] @ cores["R"] @ cores["A"], wanted)
    eye = torch.eye(3).double()
    assert near(cores["B"].T @ cores["B"], eye) and near(cores["A"] @ cores["A"].T, eye)
    assert near(cores["R"], torch.diag(cores["R"].diagonal()))


def test_the_gradient_of_the_core_is_the_best_fit_of_the_weight_s() -> None:
    """`B^T G A^T` minimises `|B X A - G|` over X: no scale is to be chosen."""
    gradient = drawn(9, 8, seed=1)
    cores = parts_of(LoRASB(rank=3), drawn(9, 8), gradient=drawn(9, 8, seed=2)).cores
    b, a = cores["B"], cores["A"]
    design = torch.kron(b.contiguous(), a.T.contiguous())
    fitted = torch.linalg.lstsq(design, gradient.reshape(-1, 1)).solution.reshape(3, 3)
    assert near(b.T @ gradient @ a.T, fitted, 1e-10)
    other = parts_of(LoRAXS(rank=3), drawn(9, 8)).cores
    design = torch.kron(other["B"].contiguous(), other["A"].T.contiguous())
    fitted = torch.linalg.lstsq(design, gradient.reshape(-1, 1)).solution.reshape(3, 3)
    assert not near(other["B"].T @ gradient @ other["A"].T, fitted, 0.1), "LoRA-XS has a scale"


def test_the_sign_is_of_the_sum_over_batches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7)).double()
    batches = [drawn(5, 9, seed=s) * 3**s for s in range(3)]
    each = [torch.autograd.grad(squares(net(x), x), net[0].weight)[0] for x in batches]
    tuned = tnc.adapt(
        net, "lora-sb{rank=8, step=0.01}", match="0", calibration=batches, loss=squares
    )
    added = tuned.weight("0.weight").detach() - net[0].weight.detach()
    assert near(added, -0.01 * sum(each).sign())  # type: ignore[union-attr]
    assert not near(added, -0.01 * sum(g.sign() for g in each).sign(), 0.1)  # type: ignore[union-attr]
    x = batches[0]
    assert bool(squares(tuned.model(x), x) < squares(net(x), x))


def test_is_kept_in_float32_beside_16_bits() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 8)).bfloat16()
    x = drawn(5, 9).bfloat16()
    tuned = tnc.adapt(net, "lora-sb{rank=3}", calibration=[x], loss=squares)
    cores = tuned.deltas()["0.weight"].cores
    assert {core.dtype for core in cores.values()} == {torch.float32}
    assert near(cores["B"].detach().T @ cores["B"].detach(), torch.eye(3), 1e-5)


def test_experts() -> None:
    weight, gradient = drawn(3, 6, 8), drawn(3, 6, 8, seed=1)
    site = site_of(3, 6, 8, op="experts", outputs=2)
    cores = parts_of(LoRASB(rank=2, step=0.5), weight, site, gradient).cores
    assert near(cores["B"] @ cores["R"] @ cores["A"], best(-0.5 * gradient.sign(), 2))


def test_says_that_it_does_not_start_at_the_base() -> None:
    assert "first full step" in LoRASB.offset
    with pytest.raises(PlanError, match="step is 0"):
        LoRASB(step=0)
    with pytest.raises(PlanError, match="needs the gradient"):
        parts_of(LoRASB(rank=2), drawn(6, 6))
