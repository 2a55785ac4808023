"""Models and data that are wrong, each in one way; `test_bad_input` names them in its specs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

INPUT = (torch.ones(4, 16),)


def small() -> nn.Sequential:
    """The model that is right: 334 parameters, two weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))


def good() -> tuple[nn.Module, Any]:
    return small(), INPUT


def wider() -> tuple[nn.Module, Any]:
    return nn.Sequential(nn.Linear(16, 14), nn.ReLU(), nn.Linear(14, 10)), INPUT


class Raising(nn.Module):
    """Fails when it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the disk is on fire")


class Answering(nn.Module):
    """Runs its layer, and returns something else."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.answer = nn.Linear(16, 12), answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.layer(x))


class Integers(nn.Module):
    """Multiplies by whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.ones(12, 16, dtype=torch.int64)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.long() @ self.weight.t()


class Tagged(Tensor):
    """A tensor subclass that keeps its class through operations."""


def raising() -> tuple[nn.Module, Any]:
    return Raising(), INPUT


def telling() -> tuple[nn.Module, Any]:
    return Answering(lambda y: "done"), INPUT


def nothing() -> tuple[nn.Module, Any]:
    return Answering(lambda y: None), INPUT


def nan_answer() -> tuple[nn.Module, Any]:
    return Answering(lambda y: y * float("nan")), INPUT


def filled(value: float) -> tuple[nn.Module, Any]:
    model = small()
    with torch.no_grad():
        model[2].weight[3, 4] = value
    return model, INPUT


def nan_weight() -> tuple[nn.Module, Any]:
    return filled(float("nan"))


def infinite_weight() -> tuple[nn.Module, Any]:
    return filled(float("inf"))


def on_meta() -> tuple[nn.Module, Any]:
    return small().to("meta"), INPUT


def lazy() -> tuple[nn.Module, Any]:
    return nn.Sequential(nn.LazyLinear(4)), INPUT


def integers() -> tuple[nn.Module, Any]:
    return Integers(), INPUT


def parametrized() -> tuple[nn.Module, Any]:
    model = small()
    for layer in (model[0], model[2]):
        parametrizations.weight_norm(layer)
    return model, INPUT


def subclassed() -> tuple[nn.Module, Any]:
    model = small()
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Tagged))
    return model, INPUT


def weightless() -> tuple[nn.Module, Any]:
    return nn.Sequential(nn.ReLU(), nn.Flatten()), INPUT


def wrong_shape() -> tuple[nn.Module, Any]:
    return small(), (torch.ones(4, 15),)


def wrong_type() -> tuple[nn.Module, Any]:
    return small(), (torch.ones(4, 16, dtype=torch.long),)


def text_input() -> tuple[nn.Module, Any]:
    return small(), "an image of a cat"


def module_class() -> type[nn.Module]:
    return Raising


def complaining() -> nn.Module:
    raise ValueError("no way")


not_callable = 3


def no_batches(loaded: object, split: str) -> list[Tensor]:
    return []


def nan_batches(loaded: object, split: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(8, 16, generator=generator)
    batch[3, 4] = float("nan")
    return [batch]


def long_batches(loaded: object, split: str) -> list[Tensor]:
    return [torch.ones(8, 16, dtype=torch.long)]


def text_batches(loaded: object, split: str) -> list[str]:
    return ["a cat", "a dog"]


def empty_batches(loaded: object, split: str) -> list[Tensor]:
    return [torch.ones(0, 16)]


def number_of_batches(loaded: object, split: str) -> int:
    return 7


def batches(loaded: object, split: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(split))
    return [torch.randn(8, 16, generator=generator) for _ in range(2)]
