"""Layers called with more than their input, and with their input by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.laws.adapters_data import method_of
from tests.unit.adapters.single import scatter
from tnc.adapters import Adapters
from tnc.adapters.method import methods

SIZES = ((9, 9), (10, 9))


class Up(nn.Module):
    """A transposed convolution whose caller chooses the size of the result, or does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None, by: str = "") -> Tensor:
        if size is None:
            found: Tensor = self.conv(x)
        elif by == "place":
            found = self.conv(x, size)
        elif by == "name":
            found = self.conv(output_size=size, input=x)
        else:
            found = self.conv(x, output_size=size)
        return found


def base(structured: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Up().double().eval(), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    if not structured:
        return model, x
    rules = [{"match": "*", "structure": "low-rank", "keep": 0.6}]
    spec = tnc.Spec(version=1, round_to=1, rules=rules)
    return tnc.compile(model, spec, example=x).model.eval(), x


def adapted(method: str, structured: bool) -> tuple[Adapters, Tensor]:
    model, x = base(structured)
    original = copy.deepcopy(base(False)[0])
    given = {"calibration": [x], "loss": lambda y, _: (y**2).mean(), "original": original}
    try:
        found = tnc.adapt(model, method_of(method), **given)
    except tnc.errors.PlanError as error:
        unseen = structured and "moment" in methods.get(method).needs
        if not unseen and "no weight can be adapted" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[0][:120])
    scatter(found)
    return found, x


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("method", sorted(methods.all()))
def test_an_output_size_reaches_the_delta(method: str, structured: bool) -> None:
    """A delta has the size that the call asks for, whatever the method and the base."""
    adapters, x = adapted(method, structured)
    found = {}
    for size in SIZES:
        for by in ("place", "name", "keyword"):
            found[size, by] = adapters.model(x, size, by).detach()
            assert found[size, by].shape[-2:] == size
    plain = adapters.model(x).detach()
    adapters.merge()
    assert torch.allclose(adapters.model(x), plain, rtol=1e-9, atol=1e-10)
    for (size, _), y in found.items():
        assert torch.allclose(adapters.model(x, size), y, rtol=1e-9, atol=1e-10)


def test_what_training_adds_has_that_size_too() -> None:
    adapters, x = adapted("lora", False)
    (delta,) = adapters.deltas().values()
    delta.watch_()
    y = adapters.model(x, (10, 9))
    y.sum().backward()
    ours = delta.watched_()
    weight = adapters.weight("conv.weight").detach().requires_grad_(True)
    again = nn.functional.conv_transpose2d(
        x, weight, None, stride=2, padding=1, output_padding=(1, 0)
    )
    again.sum().backward()
    assert ours is not None
    assert torch.allclose(ours.permute(delta.site.unordered), weight.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "inputs-first", "embedding"])
def test_the_input_by_name(name: str) -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer, word = {
        "linear": (nn.Linear(8, 6), "input"),
        "inputs-first": (Conv1D(6, 8), "x"),
        "embedding": (nn.Embedding(8, 6), "input"),
    }[name]
    x = torch.randint(0, 8, (3,)) if name == "embedding" else torch.randn(3, 8)
    adapters = tnc.adapt(nn.Sequential(layer), "lora{rank=2}", example=x)
    scatter(adapters)
    made = adapters.model[0]
    assert torch.equal(made(**{word: x}), made(x))
    with pytest.raises(TypeError):
        made(x, output_size=(3,))
    with pytest.raises(TypeError):
        made()
