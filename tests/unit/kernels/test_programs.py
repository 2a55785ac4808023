"""Every program of every network, tiled or not, computes its network and all of its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tnc.derive.dense import forward
from tnc.kernels.choose import Choice, Task, ranked
from tnc.kernels.compiled import Kernel
from tnc.kernels.einsums import lower
from tnc.kernels.operands import lay, lays
from tnc.net import Network, parse_network

NETWORKS = {
    "low-rank": "B[o r] A[r i] : i -> o | i=12 o=10 r=5",
    "train": "G1[o1 i1 r] G2[r o2 i2 s] G3[s o3 i3] : i1 i2 i3 -> o1 o2 o3 | "
    "i1=3 i2=4 i3=5 o1=2 o2=3 o3=4 r=3 s=2",
    "tucker": "U1[o1 a] U2[o2 b] G[a b c d] V1[c i1] V2[d i2] : i1 i2 -> o1 o2 | "
    "i1=6 i2=5 o1=4 o2=7 a=3 b=4 c=2 d=3",
    "block-train": "L[o1 o2 i2 r] R[o2 i1 i2 r] : i1 i2 -> o1 o2 | i1=4 i2=3 o1=5 o2=2 r=2",
    "cp": "A[o1 r] B[o2 r] C[i1 r] D[i2 r] : i1 i2 -> o1 o2 | i1=4 i2=5 o1=3 o2=2 r=6",
    "blocks": "A[g o i] : g i -> g o | g=3 i=4 o=5",
    "diagonal": "B[o r] s[r] A[r i] : i -> o | i=6 o=5 r=4",
    "ring": "x[o1 i1 r q] y[r o2 i2 q] : i1 i2 -> o1 o2 | i1=3 i2=4 o1=2 o2=5 r=2 q=3",
    "reversed": "B[o1 o2 r] A[r i1 i2] : i2 i1 -> o2 o1 | i1=3 i2=4 o1=2 o2=5 r=4",
    "ones": "B[o r] A[r i] : i -> o | i=1 o=1 r=1",
}


def truth(network: Network, cores: dict[str, Tensor], x: Tensor) -> Tensor:
    """Contract naively in float64: the oracle."""
    given = [x.view(-1, *(network.size[n] for n in network.equation.input_indices))]
    y = lower(forward(network, len(x))).run([*given, *cores.values()])
    return y.reshape(len(x), -1)


def draw(network: Network) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(0)
    return {
        core.name: torch.randn(
            network.shape(core), dtype=torch.float64, generator=made
        ).requires_grad_()
        for core in network.equation.cores
    }


def laid(network: Network, choice: Choice, cores: dict[str, Tensor]) -> list[Tensor]:
    return [lay(way, cores) for way in lays(network, choice.program)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7, 50])
@pytest.mark.parametrize("name", NETWORKS)
def test_programs_compute_networks(name: str, rows: int, training: bool, costs) -> None:
    network = parse_network(NETWORKS[name])
    cores = draw(network)
    inputs = network.signature.inputs
    made = torch.Generator().manual_seed(1)
    width = int(torch.tensor(inputs).prod())
    x = torch.randn(rows, width, dtype=torch.float64, generator=made).requires_grad_()
    y = truth(network, cores, x)
    dy = torch.randn(y.shape, dtype=torch.float64, generator=made)
    wanted = torch.autograd.grad(y, [x, *cores.values()], dy)
    bias = torch.randn(y.shape[1], dtype=torch.float64, generator=made)
    choices = ranked(Task(network, rows, "float64", 1, training), costs)
    assert choices
    for choice in choices:
        kernel, operands = Kernel(choice), laid(network, choice, cores)
        still = [operand.detach() for operand in operands]
        with torch.no_grad():
            torch.testing.assert_close(kernel.forward(x, *still), y)
            torch.testing.assert_close(kernel.forward_bias(x, *still, bias), y + bias)
        names = ("input", *(step.right.value for step in choice.program.products))
        for needs in (names, names[1:], names[:1], names[-1:]):
            with torch.no_grad():
                found = dict(zip(needs, kernel.backward(needs)(dy, x, *still)))
            if "input" in found:
                torch.testing.assert_close(found.pop("input"), wanted[0])
            given = [o for o, n in zip(operands, names[1:]) if n in found]
            if not given:
                continue
            through = torch.autograd.grad(
                given, list(cores.values()), list(found.values()), allow_unused=True,
                retain_graph=True,
            )  # fmt: skip
            for own, want in zip(through, wanted[1:]):
                if own is not None:
                    torch.testing.assert_close(own, want)


@pytest.mark.parametrize("rows", [40, 33])
@pytest.mark.parametrize("name", NETWORKS)
def test_tiles(name: str, rows: int, costs, monkeypatch) -> None:
    """Tiles are forced, with a last one that is smaller."""
    monkeypatch.setattr("tnc.kernels.choose.TILES", {"cpu": (16,)})
    monkeypatch.setattr("tnc.kernels.choose.TILED_FROM", {"cpu": -1})
    network = parse_network(NETWORKS[name])
    cores = draw(network)
    width = int(torch.tensor(network.signature.inputs).prod())
    x = torch.randn(rows, width, dtype=torch.float64).requires_grad_()
    y = truth(network, cores, x)
    dy = torch.randn_like(y)
    wanted = torch.autograd.grad(y, [x, *cores.values()], dy)
    monkeypatch.setattr("tnc.kernels.choose.SHORTLIST", 100)
    choices = ranked(Task(network, rows, "float64", 1, True), costs)
    tiled = [choice for choice in choices if choice.way.tile or choice.way.back.tile]
    assert tiled
    for choice in tiled:
        kernel, operands = Kernel(choice), laid(network, choice, cores)
        names = ("input", *(step.right.value for step in choice.program.products))
        with torch.no_grad():
            still = [operand.detach() for operand in operands]
            torch.testing.assert_close(kernel.forward(x, *still), y)
            found = kernel.backward(names)(dy, x, *still)
        torch.testing.assert_close(found[0], wanted[0])
        through = torch.autograd.grad(operands, list(cores.values()), found[1:])
        for own, want in zip(through, wanted[1:]):
            torch.testing.assert_close(own, want)


@pytest.fixture(params=["one", "two"])
def costs(request):
    """Two machines with unlike prices, so that unlike programs are at the top."""
    return Toy(request.param == "two")


class Toy:
    """A machine made up: products by size, copies cheap or dear."""

    dtype, threads, statement = "float64", 1, 1e-6

    def __init__(self, dear: bool) -> None:
        self.dear = dear
        self.backends = ("mkl",)
        self.peak = {"mkl": 1e11}

    def gemm(self, backend, batch, m, n, k, shared=False):
        return (1e-9 if self.dear else 1e-6) * batch + 2e-11 * batch * m * n * k

    def copy(self, count, run):
        return (1e-3 if self.dear else 1e-9) + 1e-11 * count

    def turn(self, count, short):
        return self.copy(count, short)

    def bandwidth(self, working):
        return 1e11

    def fresh(self, count):
        return 0.0
