"""DoRA: direction and magnitude of every row; the norm is a constant for gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tnc
from tests.unit.adapters.starts import drawn, near
from tnc.adapters import Adapters

ALPHA, RANK = 6.0, 2
SPEC = f"dora{{rank={RANK}, alpha={ALPHA}}}"

Apply = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs_first() -> nn.Module:
    conv1d: Any = pytest.importorskip("transformers.pytorch_utils").Conv1D
    return conv1d(6, 8)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Apply]] = {
    "linear": (lambda: nn.Linear(8, 6), (5, 8), functional.linear),
    "inputs-first": (inputs_first, (5, 8), lambda x, w, b: functional.linear(x, w, b)),
    "conv": (
        lambda: nn.Conv2d(4, 6, 3, padding=1),
        (2, 4, 5, 5),
        lambda x, w, b: functional.conv2d(x, w, b, padding=1),
    ),
    "transposed": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2),
        (2, 4, 5),
        lambda x, w, b: functional.conv_transpose1d(x, w.transpose(0, 1), b, stride=2),
    ),
}
kinds = pytest.mark.parametrize("kind", sorted(KINDS))


def made(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Adapters]:
    make, shape, _ = KINDS[kind]
    torch.manual_seed(0)
    net = nn.Sequential(make()).to(dtype)
    with torch.no_grad():
        net[0].bias.normal_()
    x = drawn(*shape).to(dtype)
    return net, x, tnc.adapt(net, SPEC, example=x)


def whole(net: nn.Module, kind: str) -> Tensor:
    """The weight as a map, outputs first."""
    weight = net[0].weight.detach()  # type: ignore[index]
    return weight.transpose(0, 1) if kind in ("inputs-first", "transposed") else weight


def formula(net: Any, kind: str, tuned: Adapters, x: Tensor, detached: bool = True) -> Tensor:
    """`(m / |W + s B A|) (W + s B A)`, applied by the library."""
    delta = tuned.deltas()["0.weight"]
    weight = whole(net, kind)
    low = delta.cores["B"] @ delta.cores["A"].flatten(1)
    moved = weight + ALPHA / RANK * low.reshape(weight.shape)
    norm = moved.flatten(1).norm(dim=1)
    ratio = delta.extras["magnitude"] / (norm.detach() if detached else norm)
    scaled = ratio.reshape(-1, *[1] * (weight.dim() - 1)) * moved
    return KINDS[kind][2](x, scaled, net[0].bias.detach())


def moved(tuned: Adapters) -> None:
    with torch.no_grad():
        for seed, parameter in enumerate(tuned.parameters()):
            parameter += 0.3 * drawn(*parameter.shape, seed=seed).to(parameter.dtype)


@kinds
def test_starts_as_the_base_and_magnitudes_are_row_norms(kind: str) -> None:
    net, x, tuned = made(kind, torch.float32)
    assert float((tuned.model(x) - net(x)).detach().abs().max()) < 1e-6
    magnitude = tuned.deltas()["0.weight"].extras["magnitude"]
    assert near(magnitude, whole(net, kind).flatten(1).norm(dim=1), 1e-6)


@kinds
def test_is_the_formula_with_its_gradients(kind: str) -> None:
    net, x, tuned = made(kind)
    moved(tuned)
    y, wanted = tuned.model(x), formula(net, kind, tuned, x)
    assert near(y, wanted)
    trained = list(tuned.parameters())
    loss: Callable[[Tensor], Tensor] = lambda out: (out - 1).square().sum()  # noqa: E731
    ours = torch.autograd.grad(loss(y), trained)
    theirs = torch.autograd.grad(loss(wanted), trained)
    assert all(near(a, b) for a, b in zip(ours, theirs))
    live = torch.autograd.grad(loss(formula(net, kind, tuned, x, detached=False)), trained)
    core = [name.endswith("cores.A") for name, _ in tuned.named_parameters()].index(True)
    assert not near(ours[core], live[core], 0.01), "the norm takes no part in gradients"


@kinds
def test_magnitudes_are_learned(kind: str) -> None:
    """The rows of the target are multiples of those of the base: magnitudes alone find them."""
    net, x, tuned = made(kind)
    weight = whole(net, kind)
    scales = torch.linspace(0.5, 2.0, len(weight), dtype=torch.float64)
    target = KINDS[kind][2](
        x,
        scales.reshape(-1, *[1] * (weight.dim() - 1)) * weight,
        net[0].bias.detach(),  # type: ignore[index]
    )
    magnitude = tuned.deltas()["0.weight"].extras["magnitude"]
    optimizer = torch.optim.LBFGS([magnitude], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (tuned.model(x) - target).square().mean()
        value.backward()
        return value

    optimizer.step(closure)
    wanted = scales * weight.flatten(1).norm(dim=1)
    assert near(magnitude, wanted, 1e-3)


def test_merged_and_unmerged() -> None:
    net, x, tuned = made("linear", torch.float32)
    moved(tuned)
    y = tuned.model(x)
    tuned.merge()
    assert torch.allclose(tuned.model(x), y, atol=1e-5)
    tuned.unmerge()
    assert torch.equal(tuned.model(x), y)
    with tuned.disabled():
        assert torch.equal(tuned.model(x), net(x))


def test_rows_of_zeros_break_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6)).double()
    with torch.no_grad():
        net[0].weight[2] = 0
    x = drawn(5, 8)
    tuned = tnc.adapt(net, SPEC, example=x)
    y = tuned.model(x)
    assert near(y, net(x))
    y.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in tuned.parameters())  # type: ignore[union-attr]


def test_dropout_drops_inputs_of_the_delta_alone() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 6)).double(), drawn(5, 8)
    tuned = tnc.adapt(net, "dora{rank=2, dropout=0.5}", example=x)
    tuned.model.train()
    assert near(tuned.model(x), net(x)), "at the start the delta is zero, whatever it is given"
