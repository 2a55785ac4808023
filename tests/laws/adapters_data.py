"""Small models for the laws of adapters, and options where defaults do not fit small weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

import tnc
from tnc.adapters import Method
from tnc.adapters.method import methods

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "sara": {"share": 0.4},
    "tlora": {"skills": 2, "tasks": 3},
}
"""Options of a method by name; a method with a `rank` gets 2."""

EVENTFUL: Mapping[str, Mapping[str, Any]] = {
    "fedsvd": {"every": 3},
    "loqt": {"gap": 3},
    "sara": {"share": 0.4, "nuclear": 0.01, "reselect_every": 3},
    "sora": {"rank": 3, "threshold": 0.3, "prune_every": 3, "penalty_weight": 0.1},
}
"""Options with which a method's hooks have something to do within few steps."""

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lora-pro, adam": ("lora-pro", {"rank": 2, "adam": True})
}
"""Further methods in training: those whose hooks do another thing with other options."""


def eventful(name: str) -> Method:
    """Return a method by name, or a variant, with hooks that act."""
    kind, given = VARIANTS.get(name, (name, EVENTFUL.get(name, {})))
    return replace(method_of(kind), **given)  # type: ignore[type-var]


def method_of(name: str) -> Method:
    kind = methods.get(name)
    own = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {"rank": 2} if "rank" in own else {}
    return kind(**(given | dict(OPTIONS.get(name, {}))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, x, x, need_weights=False)[0]


class InputsFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.layer = Conv1D(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 6, 8) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x.unsqueeze(0), self.up.transpose(1, 2)).sum(0)


def compressed() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6))
    rules = [{"match": "*", "structure": "low-rank", "keep": 0.6}]
    spec = tnc.Spec(version=1, round_to=1, rules=rules)
    return tnc.compile(net, spec, example=torch.ones(3, 12)).model


@dataclass(frozen=True)
class Case:
    """A model and how its input is drawn."""

    make: Callable[[], nn.Module]
    draw: Callable[[], Tensor]


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


CASES: Mapping[str, Case] = {
    "linear": Case(
        lambda: nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5, bias=False)), floats(6, 7)
    ),
    "rows": Case(lambda: nn.Sequential(nn.Linear(7, 6)), floats(2, 3, 7)),
    "conv": Case(
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2)
        ),
        floats(2, 4, 9, 9),
    ),
    "transposed": Case(
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1)),
        floats(2, 4, 5, 5),
    ),
    "sequence": Case(
        lambda: nn.Sequential(nn.Conv1d(5, 7, 3, dilation=2, padding_mode="circular", padding=2)),
        floats(2, 5, 11),
    ),
    "tied": Case(Tied, lambda: torch.randint(0, 11, (2, 5))),
    "attention": Case(Attention, floats(2, 4, 8)),
    "recurrent": Case(Recurrent, floats(2, 4, 6)),
    "inputs-first": Case(InputsFirst, floats(3, 8)),
    "experts": Case(Experts, floats(5, 8)),
    "compressed": Case(compressed, floats(4, 12)),
}
