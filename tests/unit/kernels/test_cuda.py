"""Choices for CUDA without a GPU: prices, programs, shapes; the values are checked on the CPU."""

from __future__ import annotations

import json
from math import inf, prod

import pytest
import torch

from tests.unit.kernels.test_programs import NETWORKS, draw, laid, truth
from tnc.errors import KernelError
from tnc.kernels import applied, calibrate, machine, measure
from tnc.kernels.choose import Task, choose
from tnc.kernels.compiled import Kernel
from tnc.kernels.cuda_table import estimated
from tnc.kernels.device import CUDA, TF32, device_name
from tnc.kernels.in_words import libraries, where
from tnc.kernels.operands import lays
from tnc.kernels.outcome import outcome
from tnc.kernels.price import ITEM_BYTES, from_data
from tnc.kernels.ready import readied
from tnc.net import parse_network

LARGE = {
    "low-rank": "B[o r] A[r i] : i -> o | i=768 o=3072 r=76",
    "train": "G1[o1 i1 r] G2[r o2 i2] : (i1 i2) -> (o1 o2) | i1=32 i2=24 o1=48 o2=64 r=16",
    "block-train": "L[o1 o2 i2 r] R[o2 i1 i2 r] : (i1 i2) -> (o1 o2) | i1=32 i2=24 o1=48 o2=64 r=2",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TNC_CACHE", str(tmp_path))
    choose.cache_clear()
    yield tmp_path
    choose.cache_clear()
    machine.forget()


@pytest.mark.parametrize("device", [CUDA, TF32])
@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_the_estimated_table_is_read_as_a_measured_one(dtype: str, device: str) -> None:
    prices = from_data(json.loads(json.dumps(estimated(dtype, device))))
    assert (prices.device, prices.backends, prices.made) == (device, ("cublas",), "")
    squares = [prices.gemm("cublas", 1, size, size, size) for size in (64, 512, 2048, 8192)]
    assert squares == sorted(squares)
    for sizes in ((1, 8192, 8192, 8192), (64, 4096, 256, 256), (1, 1, 4096, 4096)):
        seconds = prices.gemm("cublas", *sizes)
        assert 5e-6 < seconds < inf and 2 * prod(sizes) / seconds < 2 * prices.peak["cublas"]
    assert prices.copy(1 << 24, ITEM_BYTES[dtype]) > prices.copy(1 << 24, 1 << 20)


def test_a_calibrated_table_of_a_gpu_is_kept_apart_and_found(cache) -> None:
    told = machine.state("float32", None, CUDA)
    assert "data sheet" in told and told.endswith("tnc doctor --calibrate --device cuda")
    data = estimated("float32", CUDA)
    data |= {"key": machine.fingerprint("float32", 1, CUDA), "made": "2026-01-01"}
    machine.store(data, machine.path("float32", None, CUDA))
    assert machine.current("float32", 7, CUDA).made == "2026-01-01"
    for other in (machine.current("float32", 1, TF32), machine.current("float32", 1)):
        assert not other.made


def test_devices_without_kernels_are_refused() -> None:
    with pytest.raises(KernelError, match="'xpu'"):
        machine.current("float32", 1, "xpu")
    assert applied.dtypes("meta") == {}
    assert torch.float16 in applied.dtypes("cuda") and torch.float16 in applied.dtypes("cpu")


def test_tf32_is_what_torch_is_set_to() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = False
        assert device_name("cuda", "float32") == CUDA
        matmul.allow_tf32 = True
        assert device_name("cuda", "float32") == TF32
        assert device_name("cuda", "bfloat16") == CUDA
    finally:
        matmul.allow_tf32 = before
    network = parse_network(LARGE["low-rank"])
    assert "tf32, as torch is set" in where(Task(network, 1, "float32", 1, False, device=TF32))
    assert "not rounded" in where(Task(network, 1, "float32", 1, False, device=CUDA))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_programs_for_cuda_compute_networks(name: str, training: bool) -> None:
    """The source is the same on every device, so it is run on the CPU."""
    network = parse_network(NETWORKS[name])
    cores = draw(network)
    made = torch.Generator().manual_seed(1)
    width = prod(network.signature.inputs)
    x = torch.randn(7, width, dtype=torch.float64, generator=made).requires_grad_()
    y = truth(network, cores, x)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=made)
    wanted = torch.autograd.grad(y, [x, *cores.values()], dy)
    for choice in choose(Task(network, 8, "float64", 1, training, device=CUDA)):
        assert set(libraries(choice, CUDA)) == {"cublas"} and not choice.way.backends
        kernel, operands = Kernel(choice), laid(network, choice, cores)
        names = tuple(step.right.value for step in choice.program.products)
        with torch.no_grad():
            torch.testing.assert_close(kernel.forward(x, *operands), y)
            dx, *found = kernel.backward(("input", *names))(dy, x, *operands)
        torch.testing.assert_close(dx, wanted[0])
        back = torch.autograd.grad(operands, list(cores.values()), found)
        for one, other in zip(back, wanted[1:]):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rows", [1, 100, 16384])
@pytest.mark.parametrize("name", LARGE)
def test_shapes_of_all_programs_and_tiles(name: str, rows: int) -> None:
    network = parse_network(LARGE[name])
    i, o = (prod(side) for side in (network.signature.inputs, network.signature.outputs))
    with torch.device("meta"):
        x, dy, bias = torch.empty(rows, i), torch.empty(rows, o), torch.empty(o)
    tiles = set()
    for choice in choose(Task(network, rows, "bfloat16", 1, True, device=CUDA)):
        tiles.add(choice.way.tile)
        kernel = Kernel(choice)
        shapes = [how.shape for how in lays(network, choice.program)]
        operands = [torch.empty(shape, device="meta") for shape in shapes]
        y = kernel.forward_bias(x, *operands, bias)
        assert y.shape == (rows, o) and y.device.type == "meta"
        names = tuple(step.right.value for step in choice.program.products)
        dx, *grads = kernel.backward(("input", *names))(dy, x, *operands)
        assert dx.shape == x.shape and [tuple(g.shape) for g in grads] == shapes
        assert "use(" not in kernel.source(needs=names)
    assert tiles <= {0, 1024, 4096}


def test_outcomes_say_where_and_how_they_are_rounded() -> None:
    network = parse_network(LARGE["train"])
    task = Task(network, 128, "float32", 1, False, device=CUDA)
    found = outcome(task, choose(task))
    assert found.dense > 0 and {line.backend for line in found.lines} == {"", "cublas"} - (
        set() if any(not line.backend for line in found.lines) else {""}
    )
    assert where(task) == "CUDA, not rounded to tf32"


def test_merged_operands_cost_their_merging_at_every_call() -> None:
    """On CUDA nothing that was copied from cores is kept: the host cannot see cheaply whether they
    have changed."""
    network = parse_network(LARGE["train"])
    for choice in choose(Task(network, 1, "float32", 1, False, device=CUDA)):
        if len(choice.program.operands) == 1:
            flops = 2 * network.signature.parameters * network.size["r"]
            assert choice.seconds > flops / machine.current("float32", 1, CUDA).peak["cublas"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_timing_on_cuda_needs_a_gpu() -> None:
    with pytest.raises(KernelError, match="no CUDA device"):
        calibrate.calibrate("float32", device=CUDA)
    task = Task(parse_network(LARGE["low-rank"]), 1, "float32", 1, False, device=CUDA)
    with pytest.raises(KernelError, match="no CUDA device"):
        measure.measured(task)


def test_copied_operands_on_cuda_are_made_at_each_call() -> None:
    """The way that operands take on CUDA, walked on the CPU."""
    network = parse_network(NETWORKS["reversed"])
    cores = {name: core.detach() for name, core in draw(network).items()}
    x = torch.randn(8, prod(network.signature.inputs), dtype=torch.float64)
    for choice in choose(Task(network, 8, "float64", 1, False, device=CUDA)):
        ready = readied(network, choice)
        for _ in range(2):
            for core in cores.values():
                core.data.mul_(1.5)
            found = ready.kernel.forward(x, *ready._on_device(cores))
            torch.testing.assert_close(found, truth(network, cores, x))
        assert ready.views is not None
        for view, operand in zip(ready.views.made, ready._on_device(cores)):
            assert view is None or view is operand
