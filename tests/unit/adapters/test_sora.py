"""Golden identities of SoRA, in float64."""

from __future__ import annotations

import pytest
import torch

from tests.laws.adapters_data import CASES
from tests.unit.adapters.single import scatter, single
from tnc.adapters import adapt
from tnc.adapters.following import follow
from tnc.adapters.methods.sora import SoRA
from tnc.errors import PlanError


def test_the_proximal_step_is_the_soft_threshold() -> None:
    one = single(SoRA(rank=6, threshold=0.5))
    gate = one.delta.cores["g"]
    with torch.no_grad():
        gate.copy_(torch.tensor([1.2, 0.9, 0.6, -0.4, -0.7, -2.0]))
    before = gate.detach().clone()
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.0)
    follow(one.adapters, optimizer)
    one.backward()
    optimizer.step()
    expected = torch.nn.functional.softshrink(before, 0.5)
    assert torch.equal(gate.detach(), expected)
    assert int((gate == 0).sum()) == 1  # the release's masks in sequence close four


def test_by_rate_multiplies_by_the_gates_own_rate() -> None:
    one = single(SoRA(rank=2, threshold=0.5, by_rate=True))
    delta = one.delta
    before = delta.cores["g"].detach().clone()
    rest = [delta.cores["A"], delta.cores["B"]]
    groups = [{"params": rest}, {"params": [delta.cores["g"]], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=7.0)
    follow(one.adapters, optimizer)
    optimizer.step()
    expected = torch.nn.functional.softshrink(before, 0.05)
    assert torch.allclose(delta.cores["g"], expected, rtol=0, atol=1e-15)


def test_schedules_go_from_start_to_final() -> None:
    for schedule in ("linear", "log", "exp"):
        method = SoRA(threshold=0.01, final=1.0, over=10, schedule=schedule)
        found = [method.threshold_at(k) for k in range(1, 14)]
        assert found[0] == pytest.approx(0.01)
        assert found[10:] == pytest.approx([1.0] * 3)
        assert found == sorted(found)
    at = lambda s: SoRA(threshold=0.01, final=1.0, over=10, schedule=s).threshold_at(6)  # noqa: E731
    assert at("exp") == pytest.approx(0.1)
    assert at("linear") == pytest.approx(0.505)
    assert at("log") > at("linear")


def test_the_penalty_is_the_mean_of_absolute_gates() -> None:
    one = single(SoRA(rank=3, threshold=0.0, penalty_weight=0.6))
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=1.0)
    follow(one.adapters, optimizer)
    before = one.delta.cores["g"].detach().clone()
    for parameter in one.adapters.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    expected = before - 0.2 * before.sign()
    assert torch.allclose(one.delta.cores["g"], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("case", ["linear", "conv", "experts", "tied", "attention", "compressed"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad])
def test_pruning_keeps_outputs_and_state(case: str, kind: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    model = CASES[case].make().double()
    x = CASES[case].draw()
    x = x.double() if x.is_floating_point() else x
    found = adapt(model, SoRA(rank=4, threshold=0.0, prune_every=2), example=x)
    scatter(found)
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(found.parameters(), lr=1e-3, **options)
    followed = follow(found, optimizer)
    (found.model(x) ** 2).mean().backward()
    optimizer.step()
    closed = [1, 3]
    for delta in found.deltas().values():
        delta.cores["g"].data[..., closed] = 0.0
    y = found.model(x)
    optimizer.zero_grad()
    optimizer.step()
    assert [told for _, _, told in followed.events] == ["4 ranks pruned to 2"] * len(found.deltas())
    assert torch.allclose(found.model(x), y, rtol=1e-12, atol=1e-13)
    for parameter in found.parameters():
        for slot, value in optimizer.state[parameter].items():
            if slot != "step" and value is not None:
                assert value.shape == parameter.shape
    (found.model(x) ** 2).mean().backward()
    assert all(p.grad is not None for p in found.parameters())
    optimizer.step()


def test_pruning_cuts_parameters_and_moments() -> None:
    one = single(SoRA(rank=4, threshold=0.0, prune_every=2))
    scatter(one.adapters)
    optimizer = torch.optim.Adam(one.adapters.parameters(), lr=1e-3)
    followed = follow(one.adapters, optimizer)
    one.backward()
    optimizer.step()
    delta = one.delta
    gate = delta.cores["g"]
    gate.data[[1, 3]] = 0.0
    moments = optimizer.state[delta.cores["B"]]["exp_avg"].clone()
    y = one.adapters.model(one.x)
    for parameter in one.adapters.parameters():
        parameter.grad = None
    optimizer.step()
    assert followed.events == [(2, "weight", "4 ranks pruned to 2")]
    assert torch.allclose(one.adapters.model(one.x), y, rtol=1e-13, atol=1e-14)
    assert delta.layer.structure.shapes == {"B": (9, 2), "g": (2,), "A": (2, 7)}
    assert torch.equal(optimizer.state[delta.cores["B"]]["exp_avg"], moments[:, [0, 2]])
    mine = {id(p) for p in one.adapters.parameters()}
    assert mine == {id(p) for group in optimizer.param_groups for p in group["params"]}
    one.backward()
    optimizer.step()  # goes on
    assert followed.steps == 3


def test_one_rank_stays() -> None:
    one = single(SoRA(rank=3, threshold=100.0, prune_every=1))
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=1e-3)
    followed = follow(one.adapters, optimizer)
    one.backward()
    optimizer.step()
    assert followed.events == [(1, "weight", "3 ranks pruned to 1")]
    assert torch.equal(one.weight(), one.base)


def test_bad_options() -> None:
    with pytest.raises(PlanError, match="threshold"):
        SoRA(threshold=-1.0)
    with pytest.raises(PlanError, match="exponential"):
        SoRA(threshold=0.0, final=1.0, schedule="exp")
