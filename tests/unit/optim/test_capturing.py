"""Captures of inputs and output gradients: what is counted, and what leaves no trace."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from tnc.optim.capturing import MEANS, SQUARES, Capture, Gather


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 4, dtype=torch.float64)


def per_sample(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient of each row's loss by the first layer's output."""
    found = []
    for row in x:
        before = (model[0](row)).detach().requires_grad_()  # type: ignore[index]
        model[2](model[1](before)).square().sum().backward()  # type: ignore[index]
        found.append(before.grad)
    return torch.stack(found)


@pytest.mark.parametrize("parts", [1, 3])
def test_means_and_second_moments_over_microbatches(parts: int) -> None:
    model, x = net(), rows(12)
    wanted = per_sample(model, x)
    with Capture(model, MEANS) as means, Capture(model, SQUARES) as squares:
        for part in x.chunk(parts):
            (model(part).square().sum(-1).mean() / parts).backward()
        mean, square = means.take(model[0].weight), squares.take(model[0].weight)
    assert mean is not None and square is not None and mean.rows == 12
    assert torch.allclose(mean.inputs, x.mean(0), rtol=0, atol=1e-14)
    assert torch.allclose(mean.outputs, wanted.mean(0), rtol=0, atol=1e-14)
    assert torch.allclose(square.inputs, x.mT @ x / 12, rtol=0, atol=1e-14)
    assert torch.allclose(square.outputs, wanted.mT @ wanted / 12, rtol=0, atol=1e-14)


def test_a_forward_pass_without_gradients_leaves_no_trace() -> None:
    model = net()
    with Capture(model, MEANS) as capture:
        model(rows(3))
        with torch.no_grad():
            model(rows(3))
        assert capture.take(model[0].weight) is None
        model(rows(5)).sum().backward()
        found = capture.take(model[0].weight)
        assert found is not None and found.rows == 5
        assert capture.take(model[0].weight) is None


def test_it_asks_whether_rows_are_wanted() -> None:
    model = net()
    asked = []

    def listens(weight: nn.Parameter) -> bool:
        asked.append(weight)
        return weight is model[2].weight

    with Capture(model, MEANS, listens) as capture:
        model(rows(3)).sum().backward()
        assert capture.take(model[0].weight) is None
        assert capture.take(model[2].weight) is not None
    assert len(asked) == 2


def test_the_same_weight_in_two_layers_gathers_from_both() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    model[1].weight = model[0].weight
    with Capture(model, MEANS) as capture:
        model(rows(6)).mean().backward()
        found = capture.take(model[0].weight)
    assert found is not None and found.rows == 12


def test_release_takes_hooks_off_and_a_dead_capture_does_nothing() -> None:
    model = net()
    capture = Capture(model, MEANS)
    assert len(model[0]._forward_hooks) == 1 and capture.watches(model[0].weight)
    capture.release()
    assert not model[0]._forward_hooks and not capture.watches(model[0].weight)
    Capture(model, MEANS)
    gc.collect()
    model(rows(2)).sum().backward()
    with Capture(model, MEANS):
        assert len(model[0]._forward_hooks) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_model_are_not_watched(copied) -> None:  # type: ignore[no-untyped-def]
    model = net()
    seen = []

    def note(some: torch.Tensor) -> torch.Tensor:
        seen.append(len(some))
        return some.sum(0)

    capture = Capture(model, Gather(note, 1))
    twin = copied(model)
    twin(rows(3)).sum().backward()
    assert not seen
    with Capture(twin, MEANS) as own:
        assert len(twin[0]._forward_hooks) == 1
        twin(rows(2)).sum().backward()
        assert own.take(twin[0].weight) is not None
    capture.release()


def test_gradients_are_the_same_with_a_capture() -> None:
    model, x = net(), rows(5)
    model(x).square().mean().backward()
    wanted = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    model.zero_grad()
    with Capture(model, SQUARES):
        model(x).square().mean().backward()
    assert all(torch.equal(p.grad, w) for p, w in zip(model.parameters(), wanted))  # type: ignore[arg-type]
