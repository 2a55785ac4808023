"""Adapted layers by few products beside the dense formula, and what they keep in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import tnc
from tnc.adapters import products
from tnc.adapters.bank import bank_of
from tnc.adapters.norms import row_norms
from tnc.adapters.products import Pair
from tnc.net import Structure, parse_network

LEADING = {"rows": (5,), "none": (), "batches": (2, 3), "many": (2, 1, 3)}


def drawn(
    *shape: int, seed: int = 0, grad: bool = False, dtype: torch.dtype = torch.float64
) -> Tensor:
    found = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return found.requires_grad_(grad)


def pair(
    seed: int, outputs: int = 6, inputs: int = 7, frozen: bool = False, scale: float = 1.0
) -> Pair:
    down = drawn(2, inputs, seed=seed, grad=not frozen)
    return Pair(down, drawn(outputs, 2, seed=seed + 1, grad=not frozen), scale)


CASES: dict[str, Callable[[], list[Pair]]] = {
    "one": lambda: [pair(1, scale=0.5)],
    "offset": lambda: [pair(1, scale=0.5), pair(3, frozen=True, scale=0.5)],
    "mixed": lambda: [pair(1, scale=0.5), pair(3, frozen=True, scale=-1.5), pair(5)],
    "half frozen": lambda: [Pair(drawn(2, 7), drawn(6, 2, grad=True), 2.0)],
    "other half": lambda: [Pair(drawn(2, 7, grad=True), drawn(6, 2), 2.0)],
}


def changed(weight: Tensor, pairs: list[Pair]) -> Tensor:
    return weight + sum(one.scale * one.up @ one.down for one in pairs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("way", ["few", "fused", "spelled"])
def test_equals_the_dense_formula(
    case: str, leading: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "fused":
        monkeypatch.setattr(products, "FEW", 0)
    pairs = CASES[case]()
    weight, bias = drawn(6, 7, seed=9), drawn(6, seed=8, grad=True)
    x = drawn(*LEADING[leading], 7, seed=7, grad=True)
    if way != "spelled":
        y = products.linear(x, weight, bias, pairs)
    else:
        y = products.added(nn.functional.linear(x, weight, bias), x, pairs)
    again = nn.functional.linear(x, changed(weight, pairs), bias)
    assert torch.allclose(y, again, rtol=1e-12, atol=1e-12)
    trained = [t for one in pairs for t in (one.down, one.up) if t.requires_grad] + [x, bias]
    for a, b in zip(
        torch.autograd.grad(y.sin().sum(), trained), torch.autograd.grad(again.sin().sum(), trained)
    ):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        assert torch.allclose(products.linear(x, weight, bias, pairs), again, atol=1e-12)


@pytest.mark.parametrize("few", [0, 64])
def test_second_derivatives(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "FEW", few)
    x, bias = drawn(3, 7, grad=True), drawn(6, grad=True)
    weight, (trained, frozen) = drawn(6, 7, seed=5), CASES["offset"]()

    def run(x: Tensor, down: Tensor, up: Tensor, bias: Tensor) -> Tensor:
        return products.linear(x, weight, bias, [Pair(down, up, 0.5), frozen][: 2 - (few > 0)])

    given = (x, trained.down, trained.up, bias)
    assert gradcheck(run, given)
    assert gradgradcheck(run, given)


def test_a_trained_base_and_dropout() -> None:
    (one,) = CASES["one"]()
    x, weight = drawn(4, 7, grad=True), drawn(6, 7, seed=4, grad=True)
    y = products.linear(x, weight, None, [one], dropout=0.5)
    torch.autograd.backward(y.sum())
    assert torch.allclose(weight.grad, torch.ones(4, 6).double().t() @ x.detach())  # type: ignore[arg-type]
    torch.manual_seed(0)
    mean = sum(products.linear(x, weight, None, [one], dropout=0.5) for _ in range(4000)) / 4000
    whole = nn.functional.linear(x, changed(weight, [one]))
    assert (mean - whole).abs().max() < 0.15  # type: ignore[union-attr]
    assert gradcheck(
        lambda x, d, u: _seeded(lambda: products.linear(x, weight, None, [Pair(d, u, 1.0)], 0.5)),
        (x, one.down, one.up),
    )


def _seeded(make: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(1)
    return make()


def test_few_bits_with_wide_factors_round_once() -> None:
    weight = drawn(6, 7, dtype=torch.bfloat16)
    x = drawn(5, 7, seed=2, dtype=torch.bfloat16).requires_grad_()
    down = drawn(2, 7, seed=3, dtype=torch.float32).requires_grad_()
    up = drawn(6, 2, seed=4, dtype=torch.float32).requires_grad_()
    y = products.linear(x, weight, None, [Pair(down, up, 0.5)])
    base = nn.functional.linear(x, weight)
    expected = (base.float() + 0.5 * x.float() @ down.t() @ up.t()).bfloat16()
    assert y.dtype == torch.bfloat16
    assert (y - expected).abs().max() <= 2**-7 * expected.abs().max()
    y.float().sum().backward()
    assert down.grad is not None and down.grad.dtype == torch.float32
    ones = torch.ones(5, 6)
    assert torch.allclose(down.grad, 0.5 * (ones @ up).t() @ x.float(), rtol=1e-5, atol=1e-5)
    assert x.grad is not None and x.grad.dtype == torch.bfloat16


def kept_bytes(run: Callable[[], Tensor], without: list[Tensor]) -> int:
    """Return the bytes that autograd keeps for a backward pass beyond tensors that are there."""
    seen: dict[int, int] = {}
    known = {t.untyped_storage().data_ptr() for t in without}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = run()
    del y
    return sum(seen.values())


def test_keeps_its_input_and_the_rows_between() -> None:
    (one,) = CASES["one"]()
    x, weight = drawn(50, 7, grad=True), drawn(6, 7)
    have = [x, weight, one.down, one.up]
    assert kept_bytes(lambda: products.linear(x, weight, None, [one]), have) == 50 * 2 * 8
    (half,) = CASES["other half"]()
    have = [x, weight, half.down, half.up]
    assert kept_bytes(lambda: products.linear(x, weight, None, [half]), have) == 0


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("method", ["lora{rank=2, alpha=3}", "dora{rank=2}"])
def test_convolutions_keep_their_memory_format(method: str, last: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1)).double()
    x = drawn(2, 4, 9, 9)
    form = torch.channels_last if last else torch.contiguous_format
    net, x = net.to(memory_format=form), x.contiguous(memory_format=form)
    adapters = tnc.adapt(net, method, example=x)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter += drawn(*parameter.shape, seed=3) * 0.3
    y = adapters.model(x)
    assert y.is_contiguous(memory_format=form)
    adapters.merge()
    assert torch.allclose(y, adapters.model(x), rtol=1e-10, atol=1e-10)


def adapted(
    method: str = "lora{rank=2}", dtype: torch.dtype = torch.float64
) -> tuple[tnc.Adapters, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 6)).to(dtype)
    x = drawn(4, 7, dtype=dtype)
    found = tnc.adapt(net, method, example=x)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += drawn(*parameter.shape, seed=3, dtype=dtype) * 0.3
    return found, x


@pytest.mark.parametrize("method", ["lora{rank=2}", "dora{rank=2}"])
def test_transforms_and_checkpoints(method: str) -> None:
    adapters, x = adapted(method)
    model = adapters.model
    y = model(x)
    assert torch.allclose(torch.func.vmap(model)(x), y, atol=1e-12)
    _, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    back = torch.autograd.functional.jvp(model, x, torch.ones_like(x))[1]
    assert torch.allclose(tangent, back, atol=1e-10)
    trained = list(adapters.parameters())
    plain = torch.autograd.grad(y.sin().sum(), trained)
    again = checkpoint(model, x.clone().requires_grad_(), use_reentrant=False)
    for a, b in zip(plain, torch.autograd.grad(again.sin().sum(), trained)):
        assert torch.equal(a, b)
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, given, (x,)).sin().sum()

    functional = torch.func.grad(loss)(parameters)
    for a, (name, _) in zip(plain, adapters.named_parameters()):
        assert torch.allclose(a, functional[name], atol=1e-10)


@pytest.mark.parametrize("method", ["lora{rank=2}", "dora{rank=2}"])
def test_autocast(method: str) -> None:
    adapters, x = adapted(method, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = adapters.model(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), adapters.model(x), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapters.parameters())


def test_several_adapters_are_one_product() -> None:
    adapters, x = adapted()
    second = tnc.adapt_(adapters.model, "lora{rank=3, alpha=1}", name="other", example=x)
    with torch.no_grad():
        for parameter in second.parameters("other"):
            parameter += 0.1
    second.use(default=0.7, other=-0.4)
    bank = bank_of(second.model[0])
    assert bank is not None
    chain = bank.chain()
    assert chain is not None and len(chain.pairs) == 2
    y = second.model(x)
    second.merge()
    assert torch.allclose(second.model(x), y, rtol=1e-11, atol=1e-11)


def middle() -> dict[str, str]:
    sizes = "i=7 o=6 r=2"
    return {
        "diagonal": f"U[o r]! s[r] V[r i]! : i -> o | {sizes}",
        "square": f"U[o s]! R[s r] V[r i]! : i -> o | {sizes} s=3",
        "turned": f"A[i r] B[r o] : i -> o | {sizes}",
        "two": f"U[o s]! g[s] R[s r] V[r i]! : i -> o | {sizes} s=3",
    }


@pytest.mark.parametrize("name", middle())
def test_cores_between_are_multiplied_in(name: str) -> None:
    from tnc.adapters.delta import _pair
    from tnc.adapters.routes import routes
    from tnc.nn.dense import plan_rebuild

    structure = Structure.of(parse_network(middle()[name]))
    cores = {n: drawn(*s, seed=k) for k, (n, s) in enumerate(structure.shapes.items())}
    (one,) = [_pair(route, cores, 1.0) for route in routes(structure)]
    assert torch.allclose(one.up @ one.down, plan_rebuild(structure).run(cores), atol=1e-12)


@pytest.mark.parametrize(
    "equation",
    ["D[o i] : i -> o | i=4 o=4", "T[o a] S[a b i] R[b c] Q[c o] : i -> o | i=4 o=4 a=2 b=2 c=2"],
)
def test_what_is_no_chain_has_no_route(equation: str) -> None:
    from tnc.adapters.routes import routes

    assert not routes(Structure.of(parse_network(equation)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_row_norms_equal_the_dense_formula(dtype: torch.dtype) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    weight = drawn(40, 30).to(dtype)
    pairs = [
        Pair(drawn(3, 30, seed=s).to(wide), drawn(40, 3, seed=s + 1).to(wide), 0.3 * s)
        for s in (1, 3)
    ]
    dense = changed(weight.double(), [Pair(p.down.double(), p.up.double(), p.scale) for p in pairs])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert torch.allclose(row_norms(weight, pairs).double(), dense.norm(dim=1), rtol=tolerance)


def test_row_norms_of_rows_that_cancel() -> None:
    """Where the change takes a row away, the formula has no digits left: that row is made."""
    weight = drawn(6, 30).float()
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    pairs = [Pair(v, -(u * s) * (1 + 1e-3), 1.0)]
    dense = changed(weight.double(), [Pair(v.double(), pairs[0].up.double(), 1.0)]).norm(dim=1)
    assert torch.allclose(row_norms(weight, pairs).double(), dense, rtol=1e-5)
    squares = (weight.square().sum(1) + 2 * (weight @ v.t() * pairs[0].up).sum(1)).add(
        (pairs[0].up @ (v @ v.t()) * pairs[0].up).sum(1)
    )
    assert not torch.allclose(squares.clamp_min(0).sqrt().double(), dense, rtol=1e-5)


def test_row_norms_follow_the_weight() -> None:
    weight = nn.Parameter(drawn(6, 7), requires_grad=False)
    pairs = [pair(1)]
    row_norms(weight, pairs, (weight,))
    with torch.no_grad():
        weight *= 2
    assert torch.allclose(row_norms(weight, pairs, (weight,)), changed(weight, pairs).norm(dim=1))
    weight.data = drawn(6, 7, seed=5)
    assert torch.allclose(row_norms(weight, pairs, (weight,)), changed(weight, pairs).norm(dim=1))
