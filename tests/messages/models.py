"""Functions that the wrong situations of `test_errors` name as their models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def small(width: int = 16) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A small MLP and an input for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, 10))
    return model, (torch.ones(4, width),)


def without_input() -> nn.Module:
    """The same, and no input."""
    return small()[0]


def number() -> int:
    """No model at all."""
    return 7


def interrupted() -> nn.Module:
    """What Ctrl-C does while a model is loaded."""
    raise KeyboardInterrupt


def failing() -> nn.Module:
    """A mistake of the user's."""
    raise ValueError("no way")


def failing_batches(loaded: object, split: str) -> Iterator[Tensor]:
    """A mistake after the first batch."""
    yield torch.ones(4, 16)
    raise ValueError("no more")
