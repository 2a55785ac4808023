"""Layers through generated kernels equal the plain program, whatever is asked of them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tnc
from tests.laws.data import linear_structures
from tnc.kernels.applied import tuning
from tnc.net import Structure, parse_network
from tnc.nn import LinearView
from tnc.nn.generated import kernels_of, plain_kernels

STRUCTURES = linear_structures()
LOW_RANK, TRAIN = (
    next(name for name in STRUCTURES if name.startswith(start))
    for start in ("low-rank", "tensor-train")
)


KEEP = (0.0, float("inf"))
"""What training may keep beyond the input."""


def made(name: str, dtype: torch.dtype = torch.float64) -> tnc.StructuredLayer:
    structure = STRUCTURES[name]
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(structure.signature.outputs[0], generator=generator).to(dtype)
    return tnc.StructuredLayer.initialised(
        structure, LinearView(), std=0.1, bias=bias, generator=generator, dtype=torch.float64
    ).to(dtype)


def drawn(layer: tnc.StructuredLayer, *lead: int, seed: int = 1) -> Tensor:
    (width,) = layer.structure.signature.inputs
    generator = torch.Generator().manual_seed(seed)
    some = next(iter(layer.cores.values()))
    return torch.randn(*lead, width, generator=generator, dtype=torch.float64).to(some.dtype)


def test_the_cases_run_kernels() -> None:
    """Without this the laws below could compare the plain program with itself."""
    for name in STRUCTURES:
        layer = made(name)
        with torch.no_grad():
            layer(drawn(layer, 5))
        assert all(applied._ready for applied in kernels_of(layer)), name
        assert kernels_of(layer)


@pytest.mark.parametrize("name", STRUCTURES)
def test_leading_shapes(name: str) -> None:
    layer = made(name)
    for lead in ((), (1,), (5,), (2, 3), (0,), (2, 0)):
        x = drawn(layer, *lead)
        with torch.no_grad():
            y = layer(x)
        want = functional.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", STRUCTURES)
def test_strides(name: str) -> None:
    layer = made(name)
    x = drawn(layer, 3, 2).transpose(0, 1)
    want = functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), want, rtol=1e-10, atol=1e-10)
    wide = torch.cat([x, x], -1)[..., : x.shape[-1]]
    torch.testing.assert_close(layer(wide), want, rtol=1e-10, atol=1e-10)
    one = x[:1, :1].expand(2, 3, -1)
    want = functional.linear(one, layer.weight, layer.bias)
    torch.testing.assert_close(layer(one), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("keep", KEEP)
def test_gradients(name: str, rows: int, keep: float) -> None:
    layer = made(name)
    x = drawn(layer, rows).requires_grad_()
    asked = [x, *layer.parameters()]
    with tuning("model", keep):
        found = torch.autograd.grad(layer(x).pow(2).sum(), asked)
    with plain_kernels():
        want = torch.autograd.grad(layer(x).pow(2).sum(), asked)
    for one, other in zip(found, want):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("keep", KEEP)
def test_gradients_through_the_dense_weight(name: str, keep: float) -> None:
    """The oracle: a dense layer whose weight is rebuilt from the cores, and its autograd."""
    layer = made(name)
    x = drawn(layer, 7).requires_grad_()
    asked = [x, *layer.parameters()]
    seed = torch.randn(7, layer.structure.signature.outputs[0], dtype=torch.float64)
    want = torch.autograd.grad(functional.linear(x, layer.weight, layer.bias), asked, seed)
    with tuning("model", keep):
        y = layer(x)
    found = torch.autograd.grad(y, asked, seed, retain_graph=True)
    again = torch.autograd.grad(y, asked, seed, retain_graph=True)
    alone = torch.autograd.grad(y, x, seed)
    for one, twice, other in zip(found, again, want):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(twice, one, rtol=0, atol=0)
    torch.testing.assert_close(alone[0], want[0], rtol=1e-10, atol=1e-10)


def test_the_cases_keep_values() -> None:
    """Without this the laws about kept values could be about none."""
    keeping = []
    for name in STRUCTURES:
        layer = made(name)
        with tuning("model", KEEP[-1]):
            layer(drawn(layer, 6).requires_grad_())
        ready = [r for applied in kernels_of(layer) for r in applied._ready.values()]
        if any(r.kernel.choice.way.back.kept for r in ready):
            keeping.append(name)
        assert any(len(r.kernel.choice.program.products) < 2 for r in ready) or name in keeping
    assert LOW_RANK in keeping and len(keeping) > 8


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("keep", KEEP)
def test_second_gradients(name: str, keep: float) -> None:
    layer = made(name)
    names = list(layer.cores)
    x = drawn(layer, 5).requires_grad_()

    def apply(x: Tensor, *cores: Tensor) -> Tensor:
        given = {f"cores.{n}": c for n, c in zip(names, cores)}
        return torch.func.functional_call(layer, given, (x,))

    cores = [layer.cores[n].detach().requires_grad_() for n in names]
    with tuning("model", keep):
        y = apply(x, *cores).pow(2).sum()
    first = torch.autograd.grad(y, [x, *cores], create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), [x, *cores])
    with plain_kernels():
        y = apply(x, *cores).pow(2).sum()
        first = torch.autograd.grad(y, [x, *cores], create_graph=True)
        want = torch.autograd.grad(sum(g.pow(2).sum() for g in first), [x, *cores])
    for one, other in zip(second, want):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [LOW_RANK, TRAIN])
def test_gradcheck(name: str) -> None:
    layer = made(name)
    torch.autograd.gradcheck(layer, drawn(layer, 2).requires_grad_(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("keep", KEEP)
def test_frozen_cores_get_no_gradient(name: str, keep: float) -> None:
    layer = made(name)
    first, *rest = layer.cores.values()
    first.requires_grad_(False)
    x = drawn(layer, 6)
    dense = functional.linear(x, layer.weight, layer.bias).pow(2).sum()
    want = torch.autograd.grad(dense, rest) if rest else ()
    with tuning("model", keep):
        layer(x).pow(2).sum().backward()
    assert first.grad is None
    for core, gradient in zip(rest, want):
        torch.testing.assert_close(core.grad, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("change", ["add", "data", "through data", "load", "step", "to"])
def test_nothing_is_stale(name: str, change: str) -> None:
    """Operands that were merged or laid for inference are made anew when a core changes."""
    layer = made(name, torch.float32)
    x = drawn(layer, 5)
    with torch.no_grad():
        before = layer(x)
        core = next(iter(layer.cores.values()))
        if change == "add":
            core.mul_(2)
        elif change == "data":
            core.data = core.data * 2
        elif change == "through data":
            core.data.mul_(2)
        elif change == "load":
            layer.load_state_dict({k: 2 * v for k, v in layer.state_dict().items()})
        elif change == "to":
            layer.double()
            x = x.double()
    if change == "step":
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        layer(x).sum().backward()
        optimizer.step()
    with torch.no_grad():
        after = layer(x)
        want = functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(after, want, rtol=1e-4, atol=1e-4)
    if change != "to":
        assert not torch.allclose(after, before)


@pytest.mark.parametrize("name", STRUCTURES)
def test_copies_are_their_own(name: str) -> None:
    layer = made(name)
    x = drawn(layer, 5)
    with torch.no_grad():
        before = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            for core in other.cores.values():
                core.mul_(0)
            torch.testing.assert_close(other(x), other.bias.expand(5, -1))
        torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("name", [LOW_RANK, TRAIN])
def test_transforms_take_the_plain_program(name: str) -> None:
    layer = made(name)
    x = drawn(layer, 4, 3)
    want = layer(x)
    torch.testing.assert_close(torch.func.vmap(layer)(x), want)
    jacobian = torch.func.jacrev(layer)(x[0, 0])
    torch.testing.assert_close(jacobian, layer.weight)
    _, tangent = torch.func.jvp(layer, (x,), (x,))
    torch.testing.assert_close(tangent, functional.linear(x, layer.weight))


@pytest.mark.parametrize("name", [LOW_RANK, TRAIN])
def test_autocast(name: str) -> None:
    layer = made(name, torch.float32)
    x = drawn(layer, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    want = layer(x)
    assert float(((y.float() - want).norm() / want.norm()).detach()) < 0.03


@pytest.mark.parametrize("name", STRUCTURES)
def test_bfloat16(name: str) -> None:
    """Results between steps are rounded: a few parts in a hundred of the largest output."""
    layer = made(name, torch.bfloat16)
    x = drawn(layer, 5)
    with torch.no_grad():
        found = layer(x).double()
        want = functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert float((found - want).norm() / want.norm()) < 0.03


@pytest.mark.parametrize("name", STRUCTURES)
def test_float16(name: str) -> None:
    """Computed in float32 and rounded once: a part in a thousand of the largest output."""
    layer = made(name, torch.float16)
    x = drawn(layer, 5)
    exact = functional.linear(x.double(), weight_of(layer), layer.bias.detach().double())
    with torch.no_grad():
        found = layer(x)
    assert found.dtype == torch.float16
    assert float((found.double() - exact).abs().max() / exact.abs().max()) < 1e-3
    trained = layer(x.requires_grad_())
    torch.testing.assert_close(trained.detach(), found, rtol=2e-3, atol=2e-3)
    trained.float().pow(2).sum().backward()
    wanted = 2 * exact @ weight_of(layer)
    assert x.grad is not None and x.grad.dtype == torch.float16
    assert float((x.grad.double() - wanted).norm() / wanted.norm()) < 5e-3
    assert all(core.grad is not None for core in layer.cores.values())


def weight_of(layer: tnc.StructuredLayer) -> Tensor:
    """The weight, without rounding between its cores."""
    return copy.deepcopy(layer).double().weight.detach()


def test_changes_of_float16_cores_and_bias_are_seen() -> None:
    layer = made(TRAIN, torch.float16)
    x = drawn(layer, 5)
    with torch.no_grad():
        for change in (
            lambda: layer(x),
            lambda: layer.bias.add_(1),
            lambda: next(iter(layer.cores.values())).data.mul_(2),
            lambda: layer.load_state_dict({k: v + 0.5 for k, v in layer.state_dict().items()}),
        ):
            change()
            exact = functional.linear(x.double(), weight_of(layer), layer.bias.detach().double())
            assert float((layer(x).double() - exact).abs().max() / exact.abs().max()) < 1e-3


def test_checkpointing_and_inference_mode() -> None:
    from torch.utils.checkpoint import checkpoint

    layer = made(TRAIN)
    x = drawn(layer, 5).requires_grad_()
    (want,) = torch.autograd.grad(layer(x).sum(), x)
    for keep in KEEP:
        layer = made(TRAIN)
        with tuning("model", keep):
            y = checkpoint(layer, x, use_reentrant=False)
            (found,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(found, want)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), layer(x.clone()))
        other = made(LOW_RANK)
        assert other(drawn(other, 2)).shape == (2, other.structure.signature.outputs[0])


def held(layer: tnc.StructuredLayer, rows: int, keep: float) -> int:
    """Return the entries that autograd holds beside the input."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.data_ptr()] = tensor.numel()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with tuning("model", keep), hooks:
        x = drawn(layer, rows).requires_grad_()
        layer(x).sum().backward()
    seen.pop(x.data_ptr())
    return sum(seen.values())


def of_rank(rank: int) -> tnc.StructuredLayer:
    text = f"B[o r] A[r i] : i -> o | i=64 o=64 r={rank}"
    return tnc.StructuredLayer.initialised(Structure.of(parse_network(text)), LinearView(), std=0.1)


def growth(layer: tnc.StructuredLayer, keep: float) -> float:
    """Return the entries beside the input that autograd holds for one more row."""
    return (held(layer, 256, keep) - held(layer, 160, keep)) / (256 - 160)


def test_nothing_but_the_input_is_kept() -> None:
    """Of what autograd holds, only the input grows with the rows."""
    text = "A[o1 i1 r] B[r o2 i2] : (i1 i2) -> (o1 o2) | o1=3 o2=4 i1=4 i2=5 r=6"
    structure = Structure.of(parse_network(text))
    layer = tnc.StructuredLayer.initialised(structure, LinearView(), std=0.1)
    assert growth(layer, 0.0) == growth(of_rank(8), 0.0) == 0


def test_what_is_kept_stays_below_its_bound() -> None:
    assert growth(of_rank(8), float("inf")) == growth(of_rank(8), 0.125) == 8
    assert growth(of_rank(8), 0.124) == 0
    frozen = of_rank(8)
    for core in frozen.cores.values():
        core.requires_grad_(False)
    assert growth(frozen, float("inf")) == 0, "no core needs it"


@pytest.mark.parametrize("keep", KEEP)
def test_a_core_changed_before_the_backward_is_an_error(keep: float) -> None:
    layer = made(TRAIN)
    with tuning("model", keep):
        y = layer(drawn(layer, 6).requires_grad_()).sum()
    with torch.no_grad():
        next(iter(layer.cores.values())).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_modules_around_a_layer() -> None:
    layer = made(LOW_RANK, torch.float32)
    model = nn.Sequential(layer, nn.ReLU())
    x = drawn(layer, 4)
    want = model(x)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.testing.assert_close(exported.module()(drawn(layer, 7)), model(drawn(layer, 7)))
    torch.testing.assert_close(model(x), want)


def test_a_wrong_width_is_an_error() -> None:
    """Loops read memory by address: nothing but the layer would notice."""
    layer = made(LOW_RANK, torch.float32)
    width = layer.structure.signature.inputs[0]
    with torch.no_grad(), tuning("measure"):
        layer(drawn(layer, 1))
        for shape in ((1, width + 1), (1, width - 1), (2 * width,), (1, 2, 2 * width), ()):
            with pytest.raises((RuntimeError, IndexError)):
                layer(torch.randn(shape))


@pytest.mark.parametrize("drop", ["cast", "train"])
def test_old_memory_is_not_held(drop: str) -> None:
    layer = made(LOW_RANK, torch.float32)
    with torch.no_grad():
        layer(drawn(layer, 5))
    (applied,) = kernels_of(layer)
    assert all(ready.kept for ready in applied._ready.values())
    layer.to(torch.bfloat16) if drop == "cast" else layer.train()
    assert not any(
        ready.kept or ready.calls or len(ready.laid) for ready in applied._ready.values()
    )
    with torch.no_grad():
        assert layer(drawn(layer, 5)).isfinite().all()
