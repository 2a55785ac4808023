"""The exact Gauss-Newton direction against dense Jacobians and the closed form of least squares."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tnc.errors import BindError
from tnc.optim.rules.egn import EGN, LOSSES, direction


@pytest.mark.parametrize(("n", "c", "d"), [(4, 3, 30), (9, 3, 10)])
def test_both_systems_give_the_gauss_newton_step(n: int, c: int, d: int) -> None:
    torch.manual_seed(0)
    rows = torch.randn(n * c, d, dtype=torch.float64)
    residual = torch.randn(n * c, dtype=torch.float64)
    root = torch.randn(n, c, c, dtype=torch.float64)
    curvature = root @ root.mT
    system = rows.mT @ torch.block_diag(*curvature) @ rows / n
    system += 0.3 * torch.eye(d, dtype=torch.float64)
    wanted = torch.linalg.inv(system) @ rows.mT @ residual / n
    found = direction(rows, residual, curvature, 0.3)
    assert float((found - wanted).abs().max()) < 1e-13


def losses() -> dict[str, tuple[object, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return {
        "squared": (functional.mse_loss, torch.randn(6, 3, generator=generator).double()),
        "cross-entropy": (functional.cross_entropy, torch.tensor([0, 1, 2, 1, 0, 2])),
        "binary-cross-entropy": (
            functional.binary_cross_entropy_with_logits,
            torch.rand(6, 3, generator=generator).double().round(),
        ),
    }


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_is_that_of_the_dense_matrices(name: str, parts: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    loss, target = losses()[name]
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    rule = EGN(net.parameters(), net, name, lr=0.7, damping=0.2)
    for some, wanted in zip(x.chunk(parts), target.chunk(parts)):
        (loss(net(some), wanted) / parts).backward()  # type: ignore[operator]
    rule.step()
    flat = torch.cat([value.flatten() for value in before.values()])

    def outputs(vector: Tensor, row: Tensor) -> Tensor:
        pieces = torch.split(vector, [value.numel() for value in before.values()])
        given = {k: p.view_as(v) for (k, v), p in zip(before.items(), pieces)}
        return torch.func.functional_call(net, given, row[None])[0]

    system, right = torch.zeros(len(flat), len(flat)).double(), torch.zeros(len(flat)).double()
    for row, wanted in zip(x, target):
        jac = torch.autograd.functional.jacobian(lambda v, r=row: outputs(v, r), flat)

        def own(out: Tensor, t: Tensor = wanted) -> Tensor:
            return loss(out[None], t[None])  # type: ignore[operator,no-any-return]

        here = outputs(flat, row).detach()
        hessian = torch.autograd.functional.hessian(own, here)
        slope = torch.autograd.functional.jacobian(own, here)
        system += jac.mT @ hessian @ jac / 6
        right += jac.mT @ slope / 6
    system += 0.2 * torch.eye(len(flat)).double()
    wanted_step = torch.linalg.solve(system, right)
    moved = (flat - torch.cat([p.detach().flatten() for p in net.parameters()])) / 0.7
    assert float((moved - wanted_step).norm() / wanted_step.norm()) < 1e-12


def test_one_step_solves_least_squares() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 2, bias=False).double()
    x, y = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    rule = EGN(net.parameters(), net, "squared", lr=1.0, damping=0.0)
    functional.mse_loss(net(x), y).backward()
    rule.step()
    wanted = torch.linalg.lstsq(x, y).solution.mT
    assert float((net.weight - wanted).detach().abs().max()) < 1e-13


def test_places_of_a_sequence_are_rows() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 3).double()
    twin = copy.deepcopy(net)
    x, y = torch.randn(2, 5, 4).double(), torch.randint(3, (2, 5))
    one = EGN(net.parameters(), net, "cross-entropy")
    two = EGN(twin.parameters(), twin, "cross-entropy")
    functional.cross_entropy(net(x).flatten(0, 1), y.flatten()).backward()
    functional.cross_entropy(twin(x.flatten(0, 1)), y.flatten()).backward()
    one.step()
    two.step()
    assert torch.allclose(net.weight, twin.weight, rtol=0, atol=1e-13)


def test_what_it_refuses() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    with pytest.raises(BindError, match="loss is 'hinge'"):
        EGN(net.parameters(), net, "hinge")
    with pytest.raises(BindError, match="no parameter of the model"):
        EGN(nn.Linear(2, 2).parameters(), net, "squared")
    rule = EGN(net.parameters(), net, "squared")
    net(torch.ones(3, 4)).sum().backward()
    with pytest.raises(BindError, match="sample by sample"):
        rule.step()
    with pytest.raises(BindError, match="saw no batch"):
        rule.step()


def test_a_function_in_the_place_of_a_loss_takes_its_steps_and_is_not_saved() -> None:
    def half(outputs: Tensor) -> Tensor:
        return LOSSES["squared"](outputs) / 2

    torch.manual_seed(0)
    net = nn.Linear(4, 2).double()
    x, y = torch.randn(6, 4).double(), torch.randn(6, 2).double()
    found = []
    for loss in (half, LOSSES["squared"], "squared"):
        twin = copy.deepcopy(net)
        rule = EGN(twin.parameters(), twin, loss, damping=0.3)
        functional.mse_loss(twin(x), y).backward()
        rule.step()
        found.append(twin.weight.detach())
        name = "squared" if isinstance(loss, str) else "given"
        assert rule.state_dict()["param_groups"][0]["loss"] == rule.defaults["loss"] == name
    assert torch.equal(found[1], found[2]) and not torch.equal(found[0], found[1])
    with pytest.raises(BindError, match="loss is 'given'"):
        EGN(net.parameters(), net, "given")
    with pytest.raises(BindError, match="loss is not given"):
        EGN(net.parameters(), net)  # type: ignore[call-arg]
