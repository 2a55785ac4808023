"""Optimizers go on from dense weights to adapters beside them, and back when those are merged.

The oracle is the Jacobian of the whole weight with regard to the cores, by automatic
differentiation of the adapted weight itself.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnc
from tnc.adapters import Adapters
from tnc.errors import BindError

METHODS = (
    "lora{rank=2, alpha=6}",
    "dora{rank=2, alpha=6}",
    "structured{family=tensor-train, rank=2, scale=0.5}",
    "randlora{rank=2}",
    "lora-xs{rank=2}",
)


def trained() -> tuple[nn.Module, Tensor, Tensor, torch.optim.Optimizer]:
    """Return a dense model in the middle of its training."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    x, y = torch.randn(16, 8).double(), torch.randn(16, 4).double()
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(5):
        steps(net, x, y, adam)
    return net, x, y, adam


def steps(model: nn.Module, x: Tensor, y: Tensor, optimizer: Any) -> float:
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def adapted(net: nn.Module, method: str, x: Tensor, moved: bool = True) -> Adapters:
    tuned = tnc.adapt(net, method, example=x)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters() if moved else ():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator).double()
    return tuned


def jacobian(tuned: Adapters, name: str, core: Tensor) -> Tensor:
    """Return d(weight) / d(core): entries of the weight by entries of the core."""
    flat = tuned.weight(name).flatten()
    rows = [torch.autograd.grad(each, core, retain_graph=True)[0].flatten() for each in flat]
    return torch.stack(rows)


@pytest.mark.parametrize("method", METHODS)
def test_state_is_pulled_by_the_jacobian(method: str) -> None:
    net, x, _, adam = trained()
    known = {name: dict(adam.state[p]) for name, p in net.named_parameters()}
    tuned = adapted(net, method, x)
    found = tnc.bind(net, tuned.model, adam, policy="pull")
    told = {line.parameter: line.deed for line in found.report.lines}
    own = {id(p): name for name, p in tuned.model.named_parameters()}
    for name, delta in tuned.deltas().items():
        for core, parameter in delta.trained.items():
            label = own[id(parameter)]
            if core not in delta.cores:
                assert told[label] == "new"
                continue
            assert told[label] == "moved"
            maps = jacobian(tuned, name, parameter)
            state = adam.state[parameter]
            momentum, squares = (known[name][slot] for slot in ("exp_avg", "exp_avg_sq"))
            wanted = (maps.T @ momentum.flatten()).reshape(parameter.shape)
            assert torch.allclose(state["exp_avg"], wanted, rtol=1e-9, atol=1e-12)
            wanted = (maps.square().T @ squares.flatten()).reshape(parameter.shape)
            assert torch.allclose(state["exp_avg_sq"], wanted, rtol=1e-9, atol=1e-15)
            assert float(state["step"]) == 5
    for name in ("0.bias", "2.bias"):
        assert told[name] == "dropped"
    held = {id(p) for group in adam.param_groups for p in group["params"]}
    assert held == {id(p) for p in tuned.parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_goes_on_training(method: str) -> None:
    net, x, y, adam = trained()
    tuned = adapted(net, method, x, moved=False)
    probe = lambda model: [(model(x) - y).square().mean()]  # noqa: E731
    tnc.bind(net, tuned.model, adam, probe=probe)
    losses = [steps(tuned.model, x, y, adam) for _ in range(30)]
    assert losses[-1] < losses[0]


def test_a_core_that_no_gradient_reaches_starts_anew() -> None:
    """At the start of LoRA dL/dA is zero, as B is: the report says so."""
    net, x, _, adam = trained()
    tuned = adapted(net, "lora{rank=2}", x, moved=False)
    lines = {
        line.parameter: line
        for line in tnc.bind(net, tuned.model, adam, policy="pull").report.lines
    }
    prefix = "0.adapters_.default.weight.layer.cores"
    assert lines[f"{prefix}.B"].deed == "moved"
    assert lines[f"{prefix}.A"].deed == "reset"
    assert "no gradient of the weight reaches" in lines[f"{prefix}.A"].reason


def test_merging_pushes_state_back() -> None:
    """The merged weight gets the smallest momentum that pulls back to what the cores had."""
    net, x, y, _ = trained()
    tuned = adapted(net, "lora{rank=2, alpha=6}", x)
    adam = torch.optim.Adam(tuned.parameters(), lr=0.0)  # at rest all momenta are of one weight
    for _ in range(4):
        steps(tuned.model, x, y, adam)
    known = {
        name: {n: adam.state[p]["exp_avg"].clone() for n, p in delta.trained.items()}
        for name, delta in tuned.deltas().items()
    }
    merged = tuned.unloaded()
    merged.requires_grad_(True)
    assert torch.allclose(merged(x), tuned.model(x), rtol=1e-10, atol=1e-12)
    maps = {
        name: {n: jacobian(tuned, name, p) for n, p in delta.trained.items()}
        for name, delta in tuned.deltas().items()
    }
    report = tnc.bind(tuned.model, merged, adam, policy="pull").report
    assert {line.weight for line in report.of("moved")} == {"0.weight", "2.weight"}
    for name, weight in ((n, p) for n, p in merged.named_parameters() if n.endswith("weight")):
        lifted = adam.state[weight]["exp_avg"].flatten()
        for core, wanted in known[name].items():
            found = maps[name][core].T @ lifted
            assert torch.allclose(found, wanted.flatten(), rtol=1e-6, atol=1e-9)
    adam.param_groups[0]["lr"] = 1e-2
    losses = [steps(merged, x, y, adam) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_from_one_adapter_to_the_next() -> None:
    """Merge, begin a new adapter, and go on: what the old cores knew comes to the new ones."""
    net, x, y, _ = trained()
    tuned = adapted(net, "lora{rank=2}", x)
    adam = torch.optim.Adam(tuned.parameters(), lr=1e-2)
    for _ in range(3):
        steps(tuned.model, x, y, adam)
    again = tnc.adapt(tuned.unloaded(), "lora{rank=3}", example=x, seed=5)
    report = tnc.bind(tuned.model, again.model, adam, policy="pull").report
    assert {line.parameter.rpartition(".")[2] for line in report.of("moved")} == {"B"}
    assert steps(again.model, x, y, adam) > 0


def test_reasons() -> None:
    net, x, _, adam = trained()
    tuned = adapted(net, "lora{rank=2}", x)
    from tnc.adapters import adapt_

    adapt_(tuned.model, "lora{rank=1}", name="second", example=x)
    with pytest.raises(BindError, match="several adapters in use"):
        tnc.bind(net, tuned.model, adam)
    tuned.use("second")
    report = tnc.bind(net, tuned.model, adam, policy="pull").report
    assert all("second" in line.parameter for line in report.of("moved"))
