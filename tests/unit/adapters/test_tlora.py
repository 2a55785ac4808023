"""TLoRA and TensorPoly: the equation is the Kronecker products and the routing of the papers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tnc
from tnc.adapters import Adapters
from tnc.adapters.delta import Delta
from tnc.adapters.method import methods
from tnc.errors import PlanError


def made(options: str, outputs: int = 10, inputs: int = 7) -> tuple[nn.Module, Adapters, Delta]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(inputs, outputs).double())
    tuned = tnc.adapt(net, f"tlora{{{options}}}", example=torch.ones(1, inputs).double())
    (delta,) = tuned.deltas().values()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in delta.trained.values():
            parameter += torch.randn(parameter.shape, generator=generator).double()
    return net, tuned, delta


def kron(rows: list[Tensor]) -> Tensor:
    found = rows[0]
    for row in rows[1:]:
        found = torch.kron(found, row)
    return found


def factor(delta: Delta, side: str, size: int, task: int) -> Tensor:
    """Return A (r, i) or B (r, o) row by row, skill by skill, by explicit Kronecker products."""
    method = delta.method
    cores = [delta.cores[f"{side}{k + 1}"].detach() for k in range(method.order)]
    if method.skills == 1:
        cores = [core.unsqueeze(0) for core in cores]
        gates = torch.ones(method.order, 1).double()
    else:
        gates = torch.sigmoid(delta.extras["logits"].detach()[task])
        gates = gates / gates.sum(-1, keepdim=True)
    rows = []
    for r in range(method.rank):
        if method.routing == "whole":
            gates = gates.reshape(-1, gates.shape[-1])
            row = sum(
                gates[0, s] * kron([core[s, r] for core in cores]) for s in range(method.skills)
            )
        else:
            row = kron(
                [
                    sum(gates[k, s] * core[s, r] for s in range(method.skills))
                    for k, core in enumerate(cores)
                ]
            )
        rows.append(row[:size])
    return torch.stack(rows)


OPTIONS = (
    "rank=3, order=2",
    "rank=2, order=3, skills=3, tasks=2",
    "rank=2, order=2, skills=3, tasks=2, routing=orders",
    "rank=3, order=1, skills=2, tasks=2",
    "rank=3, order=1",
)


@pytest.mark.parametrize("options", OPTIONS)
def test_equation_is_the_kronecker_products(options: str) -> None:
    _, tuned, delta = made(options)
    for task in range(delta.method.tasks):
        if delta.method.skills > 1:
            tuned.set_("task", task)
        a, b = factor(delta, "A", 7, task), factor(delta, "B", 10, task)
        wanted = b.T @ a / delta.method.rank
        assert torch.allclose(delta.dense(), wanted, rtol=1e-12, atol=1e-12)


def test_order_one_is_lora_and_poly() -> None:
    """One leg and one skill: `B A / r`; several skills: their mixtures' product."""
    _, _, delta = made("rank=3, order=1")
    assert set(delta.cores) == {"A1", "B1"}
    a, b = (delta.cores[name].detach() for name in ("A1", "B1"))
    assert torch.allclose(delta.dense(), b.T @ a / 3, rtol=1e-12, atol=1e-12)


def test_both_routings_agree_where_all_skills_are_alike() -> None:
    """With order 1 mixing before and after the products is the same; with order 2 it is not."""
    for order, same in ((1, True), (2, False)):
        _, _, whole = made(f"rank=2, order={order}, skills=2")
        _, _, by_leg = made(f"rank=2, order={order}, skills=2, routing=orders")
        with torch.no_grad():
            for name in ("A", "B"):
                for k in range(1, order + 1):
                    by_leg.cores[f"{name}{k}"].copy_(whole.cores[f"{name}{k}"])
            by_leg.extras["logits"].copy_(whole.extras["logits"].unsqueeze(1).expand(1, order, 2))
        close = torch.allclose(whole.dense(), by_leg.dense(), rtol=1e-10, atol=1e-12)
        assert close == same


def test_tasks_in_calls_merging_and_export() -> None:
    net, tuned, delta = made("rank=2, order=2, skills=3, tasks=2")
    x = torch.randn(4, 7).double()
    outputs = []
    for task in (0, 1):
        tuned.set_("task", task, "default")
        y = tuned.model(x)
        outputs.append(y)
        assert torch.allclose(y, net(x) + x @ delta.dense().T, rtol=1e-10, atol=1e-12)
        tuned.merge()
        assert torch.allclose(tuned.model(x), y, rtol=1e-10, atol=1e-12)
        tuned.unmerge()
        tuned.use("default")
        told = tuned.to_lora(name=f"task{task}", adapter="default")
        assert told.error < 1e-10 and told.lines[0].rank <= 2
    assert not torch.allclose(outputs[0], outputs[1], rtol=1e-3, atol=1e-3)
    for task in (0, 1):
        tuned.use(f"task{task}")
        assert torch.allclose(tuned.model(x), outputs[task], rtol=1e-9, atol=1e-10)
    tuned.use("default")
    before = tuned.model(x)
    with pytest.raises(PlanError, match="task cannot be 2"):
        tuned.set_("task", 2, "default")
    assert torch.equal(tuned.model(x), before)
    with pytest.raises(PlanError, match="constant 'other'"):
        tuned.set_("other", 1, "default")


def test_only_the_task_in_use_is_trained() -> None:
    _, tuned, delta = made("rank=2, order=2, skills=3, tasks=2")
    tuned.set_("task", 1)
    tuned.model(torch.randn(4, 7).double()).square().sum().backward()
    found = delta.extras["logits"].grad
    assert found is not None and found[1].any() and not found[0].any()


def test_counts() -> None:
    """2048 x 2048 at rank 16, order 4 and 4 skills: 3,584 entries beside the logits."""
    from tnc.decide.site import Site, Use
    from tnc.net import Signature

    use = Use("l", "linear", "module", 8)
    site = Site("l.weight", ("l.weight",), Signature((2048,), (2048,)), "float32", (use,))
    method = methods.get("tlora")(rank=16, order=4, skills=4, tasks=4)
    structure = method.structure(site)
    drawn = [torch.Size(s).numel() for n, s in structure.shapes.items() if n[0] in "AB"]
    assert sum(drawn) == 3584
    assert method.trained(site, lambda: torch.zeros(1)) == 3584 + 16


def test_starts_as_the_base_with_a_gradient() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 10))
    x = torch.randn(3, 7)
    tuned = tnc.adapt(net, "tlora{rank=2, skills=2}", example=x)
    assert torch.equal(tuned.model(x), net(x))
    tuned.model(x).square().sum().backward()
    (delta,) = tuned.deltas().values()
    assert {n for n, p in delta.trained.items() if p.grad is not None and p.grad.any()} == {"B1"}
