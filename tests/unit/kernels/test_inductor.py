"""The plain program as source, and through torch.compile where that is asked for."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch.nn import functional

import tnc
from tests.unit.kernels.test_programs import NETWORKS, draw, laid, truth
from tnc.errors import KernelError
from tnc.kernels import inductor, measure
from tnc.kernels.applied import tuning
from tnc.kernels.choose import Choice, Task, choose, handicapped
from tnc.kernels.codec import choice_from, choice_to
from tnc.kernels.compiled import Kernel
from tnc.kernels.emitters.einsum_source import emit
from tnc.kernels.execute import execute
from tnc.kernels.in_words import libraries
from tnc.kernels.outcome import outcome
from tnc.kernels.way import Way
from tnc.net import Structure, parse_network
from tnc.nn import LinearView
from tnc.nn.generated import kernels_of

TRAIN = "G1[o1 i1 r] G2[r o2 i2] : (i1 i2) -> (o1 o2) | i1=3 i2=4 o1=5 o2=6 r=2"
RULES = [{"match": "0", "structure": "low-rank", "keep": 0.5}]


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A cache of its own, one thread, and nothing measured before."""
    monkeypatch.setenv("TNC_CACHE", str(tmp_path))
    for made in (choose, measure.measured):
        made.cache_clear()
    yield
    for made in (choose, measure.measured):
        made.cache_clear()


def task(rows: int = 16, training: bool = False, compiled: bool = True) -> Task:
    network = parse_network(TRAIN)
    return Task(network, rows, "float32", 1, training, compiled=compiled)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_plain_source_computes_networks(name: str) -> None:
    network = parse_network(NETWORKS[name])
    cores = draw(network)
    width = prod(network.signature.inputs)
    x = torch.randn(7, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = truth(network, cores, x)
    bias = torch.arange(wanted.shape[1], dtype=torch.float64)
    for choice in choose(Task(network, 8, "float64", 1, True)):
        operands = laid(network, choice, cores)
        for with_bias in (False, True):
            source = emit(choice.program, 8, bias=with_bias)
            forward = execute(source, inductor._NAMES)["forward"]
            y = forward(x, *operands, *([bias] if with_bias else []))
            torch.testing.assert_close(y, wanted + bias if with_bias else wanted)


def test_it_takes_part_only_where_it_is_asked_for_and_timed() -> None:
    with pytest.raises(KernelError, match="only where kernels are timed"), tuning("model", 0, True):
        pass
    with pytest.raises(tnc.errors.TncError, match="only in timing"):
        tnc.Spec(version=1, rules=RULES, kernels={"compile": True})
    spec = tnc.Spec(version=1, rules=RULES, kernels={"compile": True, "tune": "measure"})
    assert spec.kernels.compile
    (note,) = outcome(task(), choose(task())).notes
    assert "where kernels are timed" in note
    assert not outcome(task(compiled=False), choose(task(compiled=False))).notes
    assert not measure._by_compiler(task(compiled=False), choose(task(compiled=False)))


def test_without_a_compiler_the_others_are_timed_and_the_reason_is_told(monkeypatch) -> None:
    monkeypatch.setattr(inductor, "refused", lambda kind: "InvalidCxxCompiler: none works")
    found = measure.measured(task())
    assert {choice.way.emitter for choice in found} <= {"torch", "numba"}
    (note,) = outcome(task(), found).notes
    assert note == "torch.compile takes no part: InvalidCxxCompiler: none works"


def test_a_program_that_does_not_compile_is_a_warning(monkeypatch) -> None:
    monkeypatch.setattr(inductor, "refused", lambda kind: "")

    def broken(*_: object, **__: object):
        raise RuntimeError("it cannot\nfor many reasons")

    monkeypatch.setattr(inductor, "compiled", broken)
    with pytest.warns(UserWarning, match="RuntimeError: it cannot$"):
        found = measure.measured(task())
    assert all(choice.way.emitter != "inductor" for choice in found)
    (note,) = outcome(task(), found).notes
    assert "failed on this program" in note


def test_it_must_win_by_a_margin() -> None:
    (best, *_) = choose(task())
    others = Choice(best.program, best.way, 1.0, 1.0)
    for measured, wins in ((0.95, False), (0.85, True)):
        made = Choice(best.program, Way(emitter="inductor"), 1.0, measured, 12.0)
        assert (handicapped(task(), made) < handicapped(task(), others)) == wins
    assert choice_from(choice_to(made)) == made
    assert libraries(made) == ("inductor",) * len(made.program.products)
    (note,) = outcome(task(), (made, others)).notes
    assert note.startswith("torch.compile took 12.0 s")
    assert Kernel(made).source(bias=True).startswith("def forward(x, ")
    differs = outcome(task(), (others, made)).contenders[0].differs
    assert any("torch.compile" in each for each in differs)


@pytest.mark.slow
def test_a_layer_through_the_compiler() -> None:
    """Forward and backward equal the dense layer; another number of rows compiles nothing anew."""
    if reason := inductor.refused("cpu"):
        pytest.skip(f"torch.compile does not work here: {reason}")
    structure = Structure.of(parse_network(TRAIN))
    layer = tnc.StructuredLayer.initialised(
        structure,
        LinearView(),
        std=0.1,
        bias=torch.randn(30),
        generator=torch.Generator().manual_seed(0),
    )
    (applied,) = kernels_of(layer)
    for training in (False, True):
        asked = task(16, training)
        (choice,) = measure._by_compiler(asked, choose(asked))
        assert choice.compiling > 0
        applied.prepare(16, training, torch.float32)
        applied._ready[4, training, torch.float32, False] = measure.readied(asked.network, choice)
        for rows in (16, 9):
            x = torch.randn(rows, 12).requires_grad_(training)
            with torch.set_grad_enabled(training):
                y = layer(x)
                want = functional.linear(x, layer.weight, layer.bias)
            torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-4)
            if training:
                wanted = [x, *layer.parameters()]
                found = torch.autograd.grad(y.pow(2).sum(), wanted)
                exact = torch.autograd.grad(want.pow(2).sum(), wanted)
                for one, other in zip(found, exact):
                    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
