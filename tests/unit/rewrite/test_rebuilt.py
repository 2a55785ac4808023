"""Weights that their code reads itself: rebuilt once a forward, seen by fused kernels, trained."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import tnc
from tests.compiled import spec
from tnc.nn.dense import Rebuild

FULL = spec({"match": "*", "structure": "low-rank", "ranks": "full"})


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count how often a dense weight is rebuilt."""
    calls: list[int] = []
    run = Rebuild.run
    with monkeypatch.context() as patch:
        patch.setattr(Rebuild, "run", lambda self, cores: (calls.append(1), run(self, cores))[1])
        yield calls


class Greedy(nn.Module):
    """Reads one weight many times, with and without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = x @ self.w.t()
        for _ in range(5):
            x = torch.tanh(nn.functional.linear(x, self.w))
        return x


def test_a_weight_is_rebuilt_once_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Greedy(), torch.randn(3, 4)
    made = tnc.compile(model, FULL, example=((x,), {})).model
    with counted(monkeypatch) as calls:
        out = made(x)
        assert len(calls) == 2  # once without gradients, once with
        made(x)
        assert len(calls) == 4  # nothing stays after a forward
    out.sum().backward()
    mine = torch.cat([p.grad.flatten() for p in made.parameters()])
    assert float(mine.norm()) > 0
    with torch.no_grad():
        next(made.parameters()).mul_(2)
    assert not torch.allclose(made(x), out)


def test_threads_do_not_share_what_they_rebuild() -> None:
    x = torch.randn(3, 4)
    made = tnc.compile(Greedy(), FULL, example=((x,), {})).model
    results: list[bool] = []

    def run(grad: bool) -> None:
        with torch.set_grad_enabled(grad):
            for _ in range(20):
                results.append(made(x).requires_grad == grad)

    threads = [threading.Thread(target=run, args=(k % 2 == 0,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80 and all(results)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_see_their_cores(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = getattr(nn, kind)(6, 8, bidirectional=True), torch.randn(5, 2, 6)
    made = tnc.compile(layer, FULL, example=((x,), {})).model
    made.flatten_parameters()
    assert made._weights_have_changed() is False
    with counted(monkeypatch) as calls:
        out = made(x)[0]
        assert len(calls) == 4  # two weights a direction
    torch.testing.assert_close(out, layer(x)[0])
    out.square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in made.parameters())
    made.load_state_dict({k: torch.zeros_like(v) for k, v in made.state_dict().items()})
    assert float(made(x)[0].detach().abs().max()) == 0
    moved = made.double()
    assert moved(x.double())[0].dtype == torch.float64
    back = tnc.densify(tnc.compile(layer, FULL, example=((x,), {})).model)
    assert type(back) is type(layer) and back._flat_weights[0] is back.weight_ih_l0
    torch.testing.assert_close(back(x)[0], layer(x)[0])


def test_only_some_weights_of_a_recurrent_layer() -> None:
    layer, x = nn.LSTM(6, 8), torch.randn(5, 2, 6)
    one = spec({"match": "weight_hh*", "structure": "low-rank", "ranks": "full"})
    made = tnc.compile(layer, one, example=((x,), {})).model
    torch.testing.assert_close(made(x)[0], layer(x)[0])
    made.weight_ih_l0 = nn.Parameter(torch.zeros_like(layer.weight_ih_l0))
    assert not torch.allclose(made(x)[0], layer(x)[0])
    program = torch.export.export(made, (x,)).module()
    torch.testing.assert_close(program(x)[0], made(x)[0])


def test_recurrent_inputs_are_measured() -> None:
    layer, x = nn.GRU(6, 8), torch.randn(5, 2, 6)
    found = tnc.measure(layer, tnc.trace(layer, x), [(x,)])
    rows = x.flatten(0, 1).double()
    torch.testing.assert_close(
        found.of("weight_ih_l0").moment, rows.T @ rows / len(rows), check_dtype=False
    )
    assert found.of("weight_hh_l0").rows == 10
