"""Loops over memory compute what torch's products compute, and see cores that change."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.kernels.test_programs import NETWORKS, Toy, draw, laid, truth
from tnc.kernels.choose import Choice, Task, choose, looped, may_loop, ranked
from tnc.kernels.codec import choice_from, choice_to
from tnc.kernels.compiled import Kernel
from tnc.kernels.emitters.numba_source import emit
from tnc.kernels.loops import rates
from tnc.kernels.loops.nest import nests
from tnc.kernels.loops.rates import Rates
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer
from tnc.nn.generated import kernels_of

pytest.importorskip("numba")
RATES = Rates(2e-6, 5e-10)
WITHIN = {"float64": 1e-12, "float32": 1e-5}


def ways(network, rows: int) -> list[Choice]:
    """Return the loops' own ways, and programs made for libraries run as loops."""
    task = Task(network, rows, "float64", 1, False)
    found = list(looped(task, Toy(False), RATES))
    for dear in (False, True):
        for choice in ranked(task, Toy(dear)):
            way = type(choice.way)(single=rows == 1, emitter="numba")
            found.append(Choice(choice.program, way, 1.0))
    return found


def off(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("rows", [1, 2, 3, 9])
@pytest.mark.parametrize("name", NETWORKS)
def test_loops_compute_networks(name: str, rows: int, dtype: str) -> None:
    network = parse_network(NETWORKS[name])
    cores = {n: core.detach() for n, core in draw(network).items()}
    width = int(torch.tensor(network.signature.inputs).prod())
    made = torch.Generator().manual_seed(1)
    x = torch.randn(rows, width, dtype=torch.float64, generator=made)
    y = truth(network, cores, x)
    bias = torch.randn(y.shape[1], dtype=torch.float64, generator=made)
    kind = getattr(torch, dtype)
    given, own = x.to(kind), bias.to(kind)
    for choice in ways(network, rows):
        kernel = Kernel(choice)
        assert kernel.looped
        operands = [each.to(kind) for each in laid(network, choice, cores)]
        assert off(kernel.bind(operands, None, rows)(given), y) < WITHIN[dtype]
        got = kernel.bind(operands, own, rows)(given)
        assert off(got, y + bias) < WITHIN[dtype]
        assert off(got, kernel.forward_bias(given, *operands, own)) < WITHIN[dtype]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_printed_loops_compute_networks(name: str, rows: int) -> None:
    network = parse_network(NETWORKS[name])
    cores = {n: core.detach() for n, core in draw(network).items()}
    width = int(torch.tensor(network.signature.inputs).prod())
    x = torch.linspace(-1, 1, rows * width, dtype=torch.float64).view(rows, width)
    y = truth(network, cores, x)
    for choice in ways(network, rows):
        source = emit(choice.program, rows, bias=True)
        if nests(choice.program, rows) is None:
            assert not source
            continue
        space: dict = {}
        exec(source, space)
        operands = [each.flatten().tolist() for each in laid(network, choice, cores)]
        found = [0.0] * y.numel()
        space["forward"](x.flatten().tolist(), *operands, [0.5] * y.shape[1], found)
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64).view_as(y), y + 0.5)


@pytest.mark.parametrize(
    "sizes", [(1, 200, 33), (5, 17, 100), (4, 16, 64), (1, 1, 1), (3, 129, 2), (9, 15, 70)]
)
def test_vectors_end_where_columns_end(sizes: tuple[int, int, int]) -> None:
    """Every width of a last vector, and nothing written beyond the result."""
    rows, outputs, inputs = sizes
    network = parse_network(f"W[o i] : i -> o | i={inputs} o={outputs}")
    core = torch.randn(outputs, inputs)
    x = torch.randn(rows, inputs)
    for choice in ways(network, rows):
        operands = laid(network, choice, {"W": core})
        call = Kernel(choice).bind(operands, torch.ones(outputs), rows)
        for _ in range(3):
            assert off(call(x), x @ core.T + 1) < 1e-5


@pytest.mark.parametrize("rows", [2, 3, 5, 9])
@pytest.mark.parametrize("tile", [1, 2, 4, 16])
def test_tiles_of_rows(rows: int, tile: int) -> None:
    """Whole tiles and the rows that are left: the same as all rows at once."""
    network = parse_network(NETWORKS["block-train"])
    cores = {n: core.detach() for n, core in draw(network).items()}
    x = torch.randn(rows, int(torch.tensor(network.signature.inputs).prod()), dtype=torch.float64)
    wanted = truth(network, cores, x)
    bias = torch.randn(wanted.shape[1], dtype=torch.float64)
    for choice in ways(network, rows):
        operands = laid(network, choice, cores)
        tiled = replace(choice, way=replace(choice.way, tile=tile, single=False))
        assert off(Kernel(tiled).bind(operands, bias, rows)(x), wanted + bias) < 1e-12


@pytest.fixture
def layer(monkeypatch) -> StructuredLayer:
    """A layer whose kernel of one row is loops, with cores laid as they are and otherwise."""
    monkeypatch.setattr("tnc.kernels.choose.known", lambda dtype: Rates(1e-12, 1e-15))
    choose.cache_clear()
    text = NETWORKS["block-train"].replace("i1 i2 -> o1 o2", "(i1 i2) -> (o1 o2)")
    structure = Structure.of(parse_network(text))
    made = torch.Generator().manual_seed(0)
    bias = torch.randn(10, generator=made)
    layer = StructuredLayer.initialised(
        structure, LinearView(), 0.5, bias=bias, generator=made
    ).requires_grad_(False)
    yield layer
    choose.cache_clear()


def check(layer: StructuredLayer) -> None:
    x = torch.randn(1, 12)
    with torch.no_grad():
        wanted = x @ layer.weight.T + layer.bias
        assert off(layer(x), wanted) < 1e-5
    kernels = [item for applied in kernels_of(layer) for item in applied._ready.items()]
    assert all(ready.kernel.looped for (_, training, *_), ready in kernels if not training)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_cores_that_change_are_seen(layer: StructuredLayer) -> None:
    check(layer)
    names = list(layer.cores)
    with torch.no_grad():
        for name in names:
            layer.cores[name].mul_(2)
            check(layer)
            layer.cores[name].data = torch.randn_like(layer.cores[name])
            check(layer)
        layer.bias.add_(1)
        check(layer)
        layer.bias.data = torch.randn_like(layer.bias)
        check(layer)
    state = {name: torch.randn_like(value) for name, value in layer.state_dict().items()}
    layer.load_state_dict(state)
    check(layer)
    layer.load_state_dict({n: v.clone() for n, v in state.items()}, assign=True)
    check(layer)
    layer.requires_grad_(True)
    for kind in (torch.optim.SGD, torch.optim.Adam):
        for foreach in (False, True):
            optimizer = kind(layer.parameters(), lr=0.1, foreach=foreach)
            layer(torch.randn(2, 12)).sum().backward()
            optimizer.step()
            check(layer)
    check(copy.deepcopy(layer))
    check(layer.double().float())


def test_inputs_of_all_sorts(layer: StructuredLayer) -> None:
    x = torch.randn(12, 3)
    wide = torch.randn(1, 24)
    with torch.no_grad():
        weight, bias = layer.weight, layer.bias
        for given in (x[:, :1].T, wide[:, ::2], torch.randn(12), torch.randn(1, 1, 12)):
            torch.testing.assert_close(layer(given), given @ weight.T + bias)
        assert layer(x[:, :0].T).shape == (0, 10)
    with torch.inference_mode():
        torch.testing.assert_close(layer(wide[:, :12]), wide[:, :12] @ weight.T + bias)
        fresh = copy.deepcopy(layer)
        torch.testing.assert_close(fresh(wide[:, :12]), wide[:, :12] @ weight.T + bias)
    half = x[:, :1].T.double()
    layer.double()
    torch.testing.assert_close(layer(half), half @ layer.weight.T + layer.bias)
    batched = torch.vmap(layer)(torch.randn(3, 12, dtype=torch.float64))
    assert batched.shape == (3, 10)


def test_modes_see_products(layer: StructuredLayer) -> None:
    """What watches torch's operations is not passed by."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(1, 12)
    check(layer)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counted:
            layer(x)
        assert counted.get_total_flops() > 0
        traced = make_fx(lambda given: layer(given))(x)
        other = torch.randn(1, 12)
        torch.testing.assert_close(traced(other), layer(other))
        with torch.device("meta"):
            torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)
        program = torch.export.export(layer, (x,)).module()
        torch.testing.assert_close(program(other), layer(other))


def test_gradients_take_products(layer: StructuredLayer) -> None:
    layer.requires_grad_(True)
    x = torch.randn(1, 12, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.cores["L"].grad is not None


def test_one_thread_without_gradients_only() -> None:
    network = parse_network(NETWORKS["low-rank"])
    task = Task(network, 1, "float32", 1, False)
    assert may_loop(task)
    for other in (
        Task(network, 1, "bfloat16", 1, False),
        Task(network, 1, "float32", 2, False),
        Task(network, 1, "float32", 1, True),
        Task(network, 1, "float32", 1, False, "mkl"),
    ):
        assert not may_loop(other)


def test_without_numba_products_are_taken(layer: StructuredLayer, monkeypatch) -> None:
    check(layer)
    monkeypatch.setattr(rates, "stamp", lambda: "")
    rates.known.cache_clear()
    assert rates.refused("float32") == rates.state("float32") == "numba is not installed"
    assert rates.made("float32") is None
    monkeypatch.setitem(__import__("sys").modules, "tnc.kernels.loops.run", None)
    check(layer.double().float())
    rates.known.cache_clear()


def test_choices_of_loops_as_data() -> None:
    for choice in ways(parse_network(NETWORKS["tucker"]), 1):
        assert choice_from(choice_to(choice)) == choice
