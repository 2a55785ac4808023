"""Deltas of any family: zero at first, a gradient that moves them, parameters by the formula."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn

import tnc
from tnc.adapters.delta import Delta
from tnc.adapters.equations import outermost
from tnc.adapters.method import methods
from tnc.decide.options import build, print_option
from tnc.derive import parameters
from tnc.errors import PlanError
from tnc.fit import fit_structure
from tnc.structures import families

EQUATIONS = {
    "loha": 'free-form{equation="B[o r] A[r i] D[o s] C[s i] : i -> o", sizes={"r": 2, "s": 3}}',
    "lokr": 'free-form{equation="C[o1 i1] B[o2 r] A[r i2] : (i1 i2) -> (o1 o2)"}',
    "sum": "low-rank + kronecker",
    "outliers": "low-rank + sparse",
    "frozen": 'free-form{equation="B[o r] R[r s] A[s i]! : i -> o"}',
}
FAMILIES = [name for name in families.all() if name not in ("stacked", "sum", "free-form")]


def layer(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "conv":
        return nn.Conv2d(8, 12, 3, padding=1).double(), torch.randn(2, 8, 5, 5).double()
    return nn.Linear(8, 12).double(), torch.randn(7, 8).double()


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("family", [*FAMILIES, *EQUATIONS])
def test_families(family: str, kind: str) -> None:
    """Zero at first; after one step of SGD it is not, and every core has a gradient."""
    net, x = layer(kind)
    method = f"structured{{family={EQUATIONS.get(family, family)}, rank=3}}"
    try:
        tuned = tnc.adapt(nn.Sequential(net), method, example=x)
    except PlanError as error:
        reason = str(error)
        assert "no weight can be adapted" in reason
        known = ("search", "loha", "lokr", "frozen", "generalised-block-low-rank")
        assert family in known or "output axes" in reason, reason
        return
    (delta,) = tuned.deltas().values()
    assert not delta.dense().any()
    assert sum(p.numel() for p in tuned.parameters()) == parameters(delta.layer.structure) - sum(
        prod(delta.layer.structure.shapes[n])
        for n, k in delta.layer.structure.kinds.items()
        if k != "trainable"
    )
    zeros = {outermost(term) for term in delta.layer.structure.terms}
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.05)
    for step in range(2):
        optimizer.zero_grad()
        tuned.model(x).square().sum().backward()
        for name, core in delta.trained.items():
            assert core.grad is not None
            assert bool(core.grad.any()) == (step == 1 or name in zeros), name
        optimizer.step()
    assert delta.dense().any()


def test_low_rank_starts_as_lora_does() -> None:
    """What B is applied to has a third of the variance of the input."""
    net = nn.Sequential(nn.Linear(400, 300))
    tuned = tnc.adapt(net, "structured{family=low-rank, rank=64}", example=torch.ones(1, 400))
    (delta,) = tuned.deltas().values()
    assert not delta.cores["B"].any()
    assert float(delta.cores["A"].detach().var()) == pytest.approx(1 / (3 * 400), rel=0.05)
    train = tnc.adapt(net, "structured{family=tensor-train, rank=6}", example=torch.ones(1, 400))
    (delta,) = train.deltas().values()
    (zero,) = (n for n, c in delta.cores.items() if not c.any())
    (other,) = (n for n, c in delta.cores.items() if c.any())
    term = delta.layer.structure.terms[0]
    held = {*term.equation.core(zero).indices, *term.equation.output_indices}
    summed = prod(term.size[n] for n in term.equation.core(other).indices if n not in held)
    assert float(delta.cores[other].detach().var()) == pytest.approx(1 / (3 * summed), rel=0.1)


def test_is_written_and_read() -> None:
    """A family with options, and a sum, within the text of a method."""
    for text, printed in (
        ("structured{family=tensor-train{factors=3}}", ""),
        ("structured{family=low-rank + sparse, rank=2}", '"low-rank + sparse"'),
        ("structured{family=stacked{of=tucker{factors=2}}, rank=2}", ""),
    ):
        made = build(methods, text)
        assert print_option(methods, made) == text.replace("low-rank + sparse", printed)
        assert build(methods, print_option(methods, made)) == made


def test_reasons() -> None:
    net, x = nn.Sequential(nn.Linear(8, 8)), torch.ones(1, 8)
    with pytest.raises(PlanError, match="is no rank of"):
        tnc.adapt(net, 'structured{family=low-rank, ranks={"q": 2}}', example=x)
    constant = 'structured{family=free-form{equation="B[o r] A[r i]= : i -> o"}}'
    with pytest.raises(PlanError, match="values of the constant cores"):
        tnc.adapt(net, constant, example=x)
    with pytest.raises(PlanError, match="no core of"):
        frozen = 'structured{family=free-form{equation="B[o r]! A[r i]! : i -> o"}}'
        tnc.adapt(net, frozen, example=x)
    with pytest.raises(PlanError, match="search for foldings"):
        tnc.adapt(net, "structured{family=search}", example=x)


def test_experts_have_a_delta_each() -> None:
    from tests.laws.adapters_data import Experts

    model, x = Experts().double(), torch.randn(5, 8).double()
    tuned = tnc.adapt(model, "structured{family=kronecker, rank=1}", example=x)
    (delta,) = tuned.deltas().values()
    assert all(core.shape[0] == 3 for core in delta.cores.values())
    assert torch.equal(tuned.model(x), model(x))


def aligned(net: nn.Module, x: torch.Tensor, method: str) -> tuple[float, torch.Tensor, Delta]:
    """Return the cosine between the first step of SGD and that of the weight, its gradient too."""
    given = {"calibration": [x], "loss": lambda y, _: (y**3).sum()}
    tuned = tnc.adapt(nn.Sequential(net), method, **given)
    (delta,) = tuned.deltas().values()
    assert not delta.dense().any()
    weight = net.weight
    weight.grad = None
    (net(x) ** 3).sum().backward()
    gradient = delta.mapped(weight.grad)
    optimizer = torch.optim.SGD(tuned.parameters(), lr=1e-3)
    (tuned.model(x) ** 3).sum().backward()
    optimizer.step()
    step = -delta.mapped(delta.dense()).detach()
    cosine = (step * gradient).sum() / (step.norm() * gradient.norm())
    return float(cosine), gradient, delta


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("family", FAMILIES)
def test_first_values_of_the_gradient(family: str, kind: str) -> None:
    """The first step is as near to the gradient as its fit, and nearer than by chance."""
    net, x = layer(kind)
    method = f"structured{{family={family}, rank=3, first=FIRST}}"
    try:
        cosine, gradient, delta = aligned(net, x, method.replace("FIRST", "gradient"))
    except PlanError as error:
        reason = str(error)
        assert "no weight can be adapted" in reason
        told = ("not orthogonal", "of one network", "no frame", "search", "output axes",
                "fit alone")  # fmt: skip
        assert any(each in reason for each in told), reason
        assert family not in ("low-rank", "tucker", "tensor-train"), reason
        return
    error = fit_structure(gradient, delta.layer.structure).error
    assert cosine >= max(0.0, 1 - error**2) ** 0.5 - 1e-9
    by_chance = aligned(net, x, method.replace("FIRST", "normal"))[0]
    assert cosine > by_chance or len(delta.cores) == 1


def test_the_first_step_of_a_low_rank_delta_is_the_best_one() -> None:
    net, x = layer("linear")
    given = {"calibration": [x], "loss": lambda y, _: (y**3).sum()}
    tuned = tnc.adapt(
        nn.Sequential(net), "structured{family=low-rank, rank=3, first=gradient}", **given
    )
    (delta,) = tuned.deltas().values()
    frame = delta.cores["A"].detach()
    assert float(frame.square().mean()) == pytest.approx(1 / (3 * 8)), "as large as by chance"
    (net(x) ** 3).sum().backward()
    (tuned.model(x) ** 3).sum().backward()
    torch.optim.SGD(tuned.parameters(), lr=1e-2).step()
    left, values, right = torch.linalg.svd(net.weight.grad, full_matrices=False)
    best = (left[:, :3] * values[:3]) @ right[:3]
    size = float(frame.square().sum(1)[0])
    step = delta.dense().detach()
    assert torch.allclose(step, -1e-2 * size * best, rtol=1e-9, atol=1e-12)
    wrong = (left[:, 1:4] * values[1:4]) @ right[1:4]
    assert not torch.allclose(step, -1e-2 * size * wrong, rtol=1e-2)


def test_first_values_of_the_gradient_need_one() -> None:
    with pytest.raises(PlanError, match="calibration"):
        tnc.adapt(nn.Linear(8, 8), "structured{first=gradient}", example=torch.ones(1, 8))
    plain = methods.get("structured")()
    assert plain.needs == () and hash(plain) != hash(methods.get("structured")(first="gradient"))
