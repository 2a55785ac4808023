"""However the backward runs, its gradients are those of the network, and it keeps what was said."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from tests.unit.kernels.test_programs import NETWORKS, Toy, draw, laid
from tnc.derive.dense import ROWS
from tnc.kernels.choose import Choice, Task, choose
from tnc.kernels.codec import choice_from, choice_to
from tnc.kernels.compiled import Kernel
from tnc.kernels.costs import Costs
from tnc.kernels.in_words import differences, kept_share
from tnc.kernels.program import Multiply, Program, operand_gradient, recomputed, written
from tnc.kernels.search import search
from tnc.kernels.sums import summed
from tnc.kernels.training import Value, kept, values
from tnc.kernels.way import SUMS, Back, Gradients, Way
from tnc.net import parse_network

ROW_COUNT = 21
TRAIN = "G1[o1 i1 r] G2[r o2 i2 s] G3[s o3 i3] : (i1 i2 i3) -> (o1 o2 o3) | "
TRAIN += "i1=8 i2=8 i3=12 o1=12 o2=16 o3=16 r=8 s=8"


def programs(name: str) -> list[Program]:
    network = parse_network(NETWORKS[name])
    found = {}
    for dear in (False, True):
        costs = Costs(Toy(dear), training=True, cached=False)
        found |= {each.program: None for each in search(network, ROW_COUNT, costs)[:3]}
    return list(found)


def longest(name: str) -> Program:
    return max(programs(name), key=lambda program: len(program.steps))


def wide(program: Program) -> dict[str, int]:
    return dict(program.sizes) | {ROWS: ROW_COUNT}


def oracle(program: Program, x: Tensor, operands: list[Tensor]) -> Tensor:
    """Contract the input and the operands in one einsum."""
    number = {name: place for place, name in enumerate((ROWS, *dict(program.sizes)))}
    size = dict(program.sizes)
    given: list[object] = [x.view(-1, *(size[n] for n in program.inputs))]
    given.append([number[n] for n in (ROWS, *program.inputs)])
    for operand, tensor in zip(program.operands, operands):
        given += [tensor.reshape([size[n] for n in operand.layout])]
        given.append([number[n] for n in operand.layout])
    return torch.einsum(*given, [number[n] for n in program.output]).flatten(1)


def ways(program: Program) -> list[Way]:
    """All tiles with nothing kept; sets of kept values; all sums where a batch is summed."""
    found = [value.name for value in values(program, wide(program), Costs(Toy(False)))]
    sets = {(), tuple(found), *((name,) for name in found)}
    sums = SUMS if any(summed(operand_gradient(step)) for step in program.products) else ("",)
    tiles = [((), tile) for tile in ((0, 0), (8, 8), (0, 8), (16, 0), (16, 8))]
    tiles += [(names, tile) for names in sorted(sets) if names for tile in ((0, 0), (8, 8))]
    count = len(program.products)
    return [
        Way(tile, back=Back(back, names, (Gradients(sum=how, turned=turned),) * count))
        for (names, (tile, back)), how, turned in product(tiles, sums, (False, True))
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_way_back(name: str) -> None:
    network = parse_network(NETWORKS[name])
    drawn = torch.Generator().manual_seed(1)
    width = int(torch.tensor(network.signature.inputs).prod())
    x = torch.randn(ROW_COUNT, width, dtype=torch.float64, generator=drawn).requires_grad_()
    for program in programs(name):
        operands = [o.detach() for o in laid(network, Choice(program, Way(), 0.0), draw(network))]
        asked = [operand.clone().requires_grad_() for operand in operands]
        y = oracle(program, x, asked)
        dy = torch.randn(y.shape, dtype=torch.float64, generator=drawn)
        names = ["input", *(step.right.value for step in program.products)]
        wanted = dict(zip(names, torch.autograd.grad(y, [x, *asked], dy)))
        for way in ways(program):
            kernel = Kernel(Choice(program, way, 0.0))
            for needs in {tuple(names), tuple(names[1:2]), tuple(names[-1:])}:
                given = kernel.kept(needs)
                assert set(given) <= set(way.back.kept)
                with torch.no_grad():
                    result = kernel.keeping(needs, False)(x, *operands)
                    found, *held = result if given else (result,)
                    gradients = kernel.backward(needs)(dy, x, *held, *operands)
                assert len(held) == len(given)
                torch.testing.assert_close(found, y, rtol=1e-10, atol=1e-10)
                for own, one in zip(needs, gradients):
                    torch.testing.assert_close(one, wanted[own], rtol=1e-10, atol=1e-10)


def test_a_wrong_sum_would_be_seen() -> None:
    """The oracle can fail: a gradient of half the rows is another one."""
    program = longest("train")
    network = parse_network(NETWORKS["train"])
    operands = [o.detach() for o in laid(network, Choice(program, Way(), 0.0), draw(network))]
    names = tuple(step.right.value for step in program.products)
    x = torch.randn(ROW_COUNT, 60, dtype=torch.float64)
    dy = torch.randn(ROW_COUNT, 24, dtype=torch.float64)
    backward = Kernel(Choice(program, Way(), 0.0)).backward(names)
    whole, half = backward(dy, x, *operands), backward(dy[:10], x[:10], *operands)
    assert all(not torch.allclose(one, other) for one, other in zip(whole, half))


def test_what_is_kept_and_recomputed() -> None:
    program = longest("train")
    names = [step.right.value for step in program.products]
    found = list(values(program, wide(program), Costs(Toy(True))))
    assert found and all(value.seconds > 0 and value.bytes > 0 for value in found)
    everything = tuple(value.name for value in found)
    _, again = recomputed(program, names, everything)
    assert not any(isinstance(step, Multiply) for step in again)
    nothing, every = recomputed(program, names)
    assert not nothing and written(program.steps[-1]) not in {written(step) for step in every}
    assert len(program.products) > 2
    frozen, _ = recomputed(program, names[-1:], everything)
    assert len(frozen) == 1 and recomputed(program, ["input"], everything) == ((), ())


def test_the_dearest_for_their_bytes_are_kept() -> None:
    found = [Value("a", 100, 1.0), Value("b", 10, 1.0), Value("c", 50, 2.0), Value("d", 1, 0.0)]
    assert not list(kept(found, 0))
    assert list(kept(found, 60)) == [("b",), ("b", "c")]
    assert list(kept(found, 115)) == [("b",), ("b", "c")]
    assert list(kept(found, float("inf"))) == [("b",), ("b", "c"), ("a", "b", "c")]


def test_more_room_is_never_slower() -> None:
    """By the price model, and within the bound."""
    before = float("inf")
    for keep in (0.0, 0.25, 4.0, float("inf")):
        best = choose(Task(parse_network(TRAIN), 1024, "float32", 1, True, keep=keep))[0]
        assert best.seconds <= before
        assert kept_share(best) <= keep
        before = best.seconds
    assert best.way.back.kept
    assert choice_from(choice_to(best)) == best
    other = choose(Task(parse_network(TRAIN), 1024, "float32", 1, True))[0]
    assert not other.way.back.kept
    assert any("for the backward" in text for text in differences(best, other))
