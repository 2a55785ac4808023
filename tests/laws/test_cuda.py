"""The laws of generated kernels on a CUDA device; all are skipped where torch finds none."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tnc
from tests.laws.test_kernels import LOW_RANK, STRUCTURES, TRAIN, drawn, made
from tests.unit.kernels.test_triton import CHAINS, programs_of
from tnc.kernels import calibrate, machine, triton_run
from tnc.kernels.applied import tuning
from tnc.kernels.choose import Task, choose
from tnc.kernels.device import CUDA, device_name
from tnc.kernels.fused import BLOCKS, fused, refused
from tnc.kernels.in_words import libraries
from tnc.kernels.ready import readied
from tnc.net import Structure, parse_network
from tnc.nn import LinearView
from tnc.nn.generated import kernels_of, plain_kernels
from tnc.nn.given import Given

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
LAYER = "B[o r] A[r i] : i -> o | i=768 o=3072 r=76"
ROUNDED = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}
"""Relative error (Frobenius): results between steps are rounded too."""


@pytest.fixture(autouse=True)
def exact(tmp_path, monkeypatch):
    """Products of float32 that are not rounded to tf32, and a cache of its own."""
    monkeypatch.setenv("TNC_CACHE", str(tmp_path))
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    choose.cache_clear()
    yield
    matmul.allow_tf32 = before
    machine.forget()


def on_device(name: str, dtype: torch.dtype = torch.float64) -> tnc.StructuredLayer:
    return made(name, dtype).to("cuda")


def given(layer: tnc.StructuredLayer, *lead: int) -> Tensor:
    return drawn(layer, *lead).to("cuda")


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def exactly(layer: tnc.StructuredLayer, x: Tensor) -> Tensor:
    return functional.linear(x.double(), layer.weight.double(), layer.bias.double())


def test_the_cases_run_kernels() -> None:
    """Without this the laws below could compare the plain program with itself."""
    for name in STRUCTURES:
        layer = on_device(name)
        with torch.no_grad():
            y = layer(given(layer, 5))
        assert y.is_cuda
        for applied in kernels_of(layer):
            (ready,) = applied._ready.values()
            assert set(libraries(ready.kernel.choice, CUDA)) == {"cublas"}


@pytest.mark.parametrize("name", STRUCTURES)
def test_leading_shapes_and_strides(name: str) -> None:
    layer = on_device(name)
    for lead in ((), (1,), (5,), (2, 3), (0,), (300,)):
        x = given(layer, *lead)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), exactly(layer, x), rtol=1e-10, atol=1e-10)
    x = given(layer, 3, 2).transpose(0, 1)
    torch.testing.assert_close(layer(x), exactly(layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("name", STRUCTURES)
def test_dtypes_with_and_without_gradients(name: str, dtype: torch.dtype) -> None:
    layer = on_device(name, dtype)
    for rows in (1, 7, 130):
        x = given(layer, rows)
        with torch.no_grad():
            assert off(layer(x), exactly(layer, x)) < ROUNDED[dtype]
        assert off(layer(x).detach(), exactly(layer, x).detach()) < ROUNDED[dtype]


@pytest.mark.parametrize("rows", [1, 6, 129])
@pytest.mark.parametrize("name", STRUCTURES)
def test_gradients(name: str, rows: int) -> None:
    layer = on_device(name)
    x = given(layer, rows).requires_grad_()
    asked = [x, *layer.parameters()]
    found = torch.autograd.grad(layer(x).pow(2).sum(), asked)
    with plain_kernels():
        want = torch.autograd.grad(layer(x).pow(2).sum(), asked)
    for one, other in zip(found, want):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [LOW_RANK, TRAIN])
def test_second_gradients(name: str) -> None:
    layer = on_device(name)
    torch.autograd.gradgradcheck(layer, given(layer, 2).requires_grad_(), atol=1e-6)


@pytest.mark.parametrize("name", STRUCTURES)
def test_nothing_is_stale(name: str) -> None:
    layer = on_device(name)
    x = given(layer, 5)
    with torch.no_grad():
        layer(x)
        core = next(iter(layer.cores.values()))
        for change in (
            lambda: core.mul_(2),
            lambda: core.data.mul_(2),
            lambda: setattr(core, "data", core.data * 2),
        ):
            change()
            torch.testing.assert_close(layer(x), exactly(layer, x), rtol=1e-10, atol=1e-10)
        other = copy.deepcopy(layer)
        next(iter(other.cores.values())).mul_(0)
        torch.testing.assert_close(layer(x), exactly(layer, x), rtol=1e-10, atol=1e-10)


def test_between_devices() -> None:
    layer = made(TRAIN)
    x = drawn(layer, 4)
    with torch.no_grad():
        here = layer(x)
        there = layer.to("cuda")(x.cuda())
        torch.testing.assert_close(there.cpu(), here)
        torch.testing.assert_close(layer.to("cpu")(x), here)
        with pytest.raises(RuntimeError):
            layer(x.cuda())


def test_autocast_takes_the_plain_program() -> None:
    layer = on_device(LOW_RANK, torch.float32)
    x = given(layer, 4)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_inference_mode_and_other_streams() -> None:
    layer = on_device(TRAIN)
    x = given(layer, 40)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), exactly(layer, x), rtol=1e-10, atol=1e-10)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        y = layer(x)
    stream.synchronize()
    torch.testing.assert_close(y, exactly(layer, x).detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_graph_of_calls_sees_written_cores(name: str) -> None:
    """Nothing in a forward waits for the device: it can be captured, and reads the cores anew."""
    layer = on_device(name, torch.float32)
    x = given(layer, 8)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                layer(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        next(iter(layer.cores.values())).data.mul_(2)
        graph.replay()
        torch.cuda.synchronize()
        assert off(y, exactly(layer, x)) < 1e-5


@pytest.mark.parametrize("training", [False, True])
def test_choosing_by_timing(training: bool) -> None:
    layer = on_device(TRAIN, torch.float32)
    found = tnc.tune(torch.nn.Sequential(layer), rows=(1, 64), how="measure", training=training)
    ((kind, outcomes),) = found.layers
    assert kind.device == "cuda" and all(each.choice.measured > 0 for each in outcomes)
    x = given(layer, 64)
    assert off(layer(x).detach(), exactly(layer, x).detach()) < 1e-5
    with tuning("measure"):
        kind.outcomes(Given((1, 64), training=training), "measure")


def test_a_calibration_of_the_device_is_found_again(monkeypatch) -> None:
    axis = (1, 16, 256)
    axes = {"mm": (axis, axis, axis), "bmm": ((4,), *3 * (axis,)), "shared": ((4,), *3 * (axis,))}
    monkeypatch.setattr(calibrate, "AXES", axes)
    device = device_name("cuda", "float32")
    data = calibrate.calibrate("float32", seconds_limit=2, device=device)
    machine.store(data, machine.path("float32", None, device))
    found = machine.current("float32", None, device)
    assert found.made and found.gemm("cublas", 1, 256, 256, 256) > 0


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("name", CHAINS)
def test_triton_kernels_meet_torch(name: str, dtype: torch.dtype) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    for program in programs_of(parse_network(CHAINS[name])):
        for rows in BLOCKS:
            for bias in (False, True):
                place = torch.device("cuda", torch.cuda.current_device())
                assert not triton_run.wrong(program, rows, dtype, place, bias)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_through_a_triton_kernel(training: bool) -> None:
    """A layer whose choice is a Triton kernel, forward and backward."""
    network, dtype = parse_network(LAYER), torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    layer = tnc.StructuredLayer.initialised(
        Structure.of(network),
        LinearView(),
        std=0.1,
        bias=torch.randn(3072, generator=generator),
        generator=generator,
    ).to("cuda", dtype)
    task = Task(network, 64, "bfloat16", 1, training, device=CUDA)
    assert not refused(task)
    choice = fused(task, choose(task))[0]
    (applied,) = kernels_of(layer)
    applied._ready[6, training, dtype, True] = readied(network, choice)
    x = torch.randn(64, 768, generator=generator).to("cuda", dtype).requires_grad_(training)
    with torch.set_grad_enabled(training):
        y = layer(x)
    assert off(y.detach(), exactly(layer, x).detach()) < ROUNDED[dtype]
    if training:
        asked = [x, *layer.parameters()]
        found = torch.autograd.grad(layer(x).pow(2).sum(), asked)
        with plain_kernels():
            want = torch.autograd.grad(layer(x).pow(2).sum(), asked)
        assert all(off(one, other) < ROUNDED[dtype] for one, other in zip(found, want))
