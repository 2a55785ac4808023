"""The compiled copy writes what torch's writes, and nothing else."""

from __future__ import annotations

import random

import pytest
import torch

from tnc.kernels.choose import Task, equipped
from tnc.kernels.codec import choice_from, choice_to
from tnc.kernels.grid import Grid
from tnc.kernels.loops import copies
from tnc.kernels.loops.arrange import BLOCKS, ITEMS, ROWS, arranged

pytest.importorskip("numba")
from tnc.kernels.loops.turning import _bound, turn

FEW, MANY = (1, 2, 3, 7, 17), (1, 2, 3, 5, 8, 16, 17, 31, 33, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_order_of_dims(dtype: torch.dtype) -> None:
    draw, made = random.Random(0), torch.Generator().manual_seed(0)
    kinds = set()
    for _ in range(120):
        shape = [draw.choice(MANY if place < 3 else FEW) for place in range(draw.randint(1, 5))]
        order = draw.sample(range(len(shape)), len(shape))
        source = torch.randn(shape, generator=made).to(dtype).permute(order)
        around = torch.full([source.numel() + 200], 7.0, dtype=dtype)
        target = around[100:-100].view(source.shape)
        assert turn(target, source) is target
        assert torch.equal(target, source), (shape, order)
        assert (around[:100] == 7).all() and (around[-100:] == 7).all()
        kinds.add(arranged(list(zip(target.shape, target.stride(), source.stride())))[0])
    assert kinds >= {ROWS, BLOCKS}


def test_strides_that_no_tensor_of_its_own_has() -> None:
    wide = torch.randn(20, 6, 30)
    for source in (wide[:, :, ::2], wide[::3, 1:], wide[1:].transpose(0, 2)[:, ::2]):
        target = torch.zeros(source.shape)
        assert torch.equal(turn(target, source), source)
        late = torch.zeros(source.shape[::-1]).permute(*range(source.dim() - 1, -1, -1))
        assert torch.equal(turn(late, source), source)
    assert torch.equal(turn(torch.zeros(4, 5), torch.ones(1).expand(4, 5)), torch.ones(4, 5))
    assert turn(torch.zeros(0, 3), torch.ones(0, 3)).shape == (0, 3)


def test_too_many_loops_are_left_to_torch() -> None:
    source = torch.randn(2, 3, 2, 3, 2, 3).permute(5, 4, 3, 2, 1, 0)
    assert (
        arranged(list(zip(source.shape, torch.zeros(source.shape).stride(), source.stride())))
        is None
    )
    assert torch.equal(turn(torch.zeros(source.shape), source), source)
    assert _bound((4,), (1,), (1,), torch.bool) is None
    assert turn(torch.zeros(4), torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_loops_are_joined_and_arranged() -> None:
    assert arranged([(4, 30, 30), (5, 6, 6), (6, 1, 1)])[-3:] == (120, 1, 1)
    assert arranged([(4, 5, 1), (5, 1, 4)])[0] == BLOCKS
    assert arranged([(4, 10, 2), (5, 2, 40)])[0] == ITEMS


def test_copies_are_compiled_where_asked_only(tmp_path, monkeypatch) -> None:
    from tests.unit.kernels.test_programs import NETWORKS
    from tnc.kernels.choose import choose
    from tnc.net import parse_network

    monkeypatch.setenv("TNC_CACHE", str(tmp_path))
    monkeypatch.setattr(copies, "SECONDS", 0.0)
    copies.known.cache_clear()
    task = Task(parse_network(NETWORKS["block-train"]), 64, "bfloat16", 1, False)
    try:
        assert equipped(task)[1] == "torch"
        assert copies.made("bfloat16") is copies.known("bfloat16") is not None
        machine, how = equipped(task)
        assert how == ("numba" if machine.copies is copies.known("bfloat16") else "torch")
        choose.cache_clear()
        for choice in choose(task):
            assert choice.way.copies == how and choice_from(choice_to(choice)) == choice
    finally:
        copies.known.cache_clear()
        choose.cache_clear()


def test_kernels_and_gradients_by_compiled_copies(monkeypatch) -> None:
    from tests.unit.kernels.test_programs import NETWORKS
    from tnc.kernels.choose import choose
    from tnc.kernels.machine import generic
    from tnc.kernels.price import Copies
    from tnc.net import Structure, parse_network
    from tnc.nn import LinearView, StructuredLayer
    from tnc.nn.generated import kernels_of, plain_kernels

    old = generic("float64", 1).copies
    grid, turns = (Grid(each.axes, tuple(s / 1e3 for s in each.seconds)) for each in
                   (old.grid, old.turns))  # fmt: skip
    monkeypatch.setattr(copies, "known", lambda dtype: Copies(1e-9, grid, turns))
    choose.cache_clear()
    text = NETWORKS["block-train"].replace("i1 i2 -> o1 o2", "(i1 i2) -> (o1 o2)")
    structure = Structure.of(parse_network(text))
    layer = StructuredLayer.initialised(structure, LinearView(), 0.5, dtype=torch.float64)
    x = torch.randn(40, structure.signature.inputs[0], dtype=torch.float64, requires_grad=True)
    asked = [x, *layer.parameters()]
    try:
        found = torch.autograd.grad(layer(x).pow(2).sum(), asked)
        with plain_kernels():
            wanted = torch.autograd.grad(layer(x).pow(2).sum(), asked)
        for one, other in zip(found, wanted):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        (ready,) = (each for applied in kernels_of(layer) for each in applied._ready.values())
        assert ready.kernel.choice.way.copies == "numba"
    finally:
        choose.cache_clear()
