"""Operands are laid out of cores, and their gradients brought back to them."""

from __future__ import annotations

import pytest
import torch

from tnc.kernels.einsums import fold
from tnc.kernels.operands import gradient, lay, lays
from tnc.kernels.program import Matrix, Multiply, Operand, Program
from tnc.net import parse_network

NETWORKS = {
    "chain": "A[o r] B[r s] C[s i] : i -> o | i=6 o=5 r=3 s=4",
    "train": "A[o i r] B[r p j] : i j -> o p | i=3 j=4 o=5 p=2 r=6",
    "shared": "A[o r] B[p r] C[r i] : i -> o p | i=3 o=4 p=5 r=16",
    "shared by three": "A[o r] B[p r] D[q r] C[r i] : i -> o p q | i=3 o=4 p=5 q=2 r=9",
}


def operand_of(name: str, merged: int):
    """Merge the first cores of a network into one operand whose legs lie backwards."""
    network = parse_network(NETWORKS[name])
    cores = network.equation.cores[:merged]
    rest = {n for core in network.equation.cores[merged:] for n in core.indices}
    outer = rest.union(*network.equation.inputs, *network.equation.outputs)
    legs = tuple(dict.fromkeys(n for core in cores for n in core.indices if n in outer))[::-1]
    right = Matrix("W", (legs[:1], legs[1:]), "kn")
    step = Multiply(Matrix("t0", ((), ()), "mn"), Matrix("input", ((), ()), "mk"), right)
    operand = Operand("W", tuple(core.name for core in cores), legs)
    program = Program((), (), (operand,), (step,), network.sizes)
    (how,) = lays(network, program)
    drawn = torch.Generator().manual_seed(0)
    made = {
        core.name: torch.randn(network.shape(core), dtype=torch.float64, generator=drawn)
        for core in cores
    }
    return how, made


@pytest.mark.parametrize("merged", [1, 2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_come_back_to_cores(name: str, merged: int) -> None:
    how, cores = operand_of(name, min(merged, len(parse_network(NETWORKS[name]).equation.cores)))
    asked = [core.requires_grad_() for core in cores.values()]
    made = lay(how, cores)
    assert made.shape == how.shape
    seed = torch.randn_like(made)
    wanted = torch.autograd.grad(made, asked, seed)
    with torch.no_grad():
        for place, want in enumerate(wanted):
            for other in (seed, seed.t().contiguous().t()):
                found = gradient(how, place, other, asked)
                torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)


def test_long_batches_of_vectors_are_folded() -> None:
    how, _ = operand_of("shared", 2)
    assert [step.form for back in how.backs for step in back.instructions] == ["fold", "fold"]
    how, _ = operand_of("train", 2)
    assert not any(step.form == "fold" for back in how.backs for step in back.instructions)


@pytest.mark.parametrize("spec", ["abr,br->ar", "abr,ra->br", "rab,br->ra", "abc,bc->ca"])
def test_folds_are_einsums(spec: str) -> None:
    sizes = {"a": 3, "b": 4, "c": 5, "r": 6}
    left, right = (torch.randn([sizes[n] for n in part]) for part in spec.split("->")[0].split(","))
    torch.testing.assert_close(fold(spec, left, right), torch.einsum(spec, left, right))
