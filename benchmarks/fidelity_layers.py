"""The layers of the fidelity grid: every kind with its options, small and of uneven sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

KERNEL, PIXELS = (3, 2, 2), (7, 6, 5)
CONV: tuple[dict[str, Any], ...] = (
    {},
    {"bias": False},
    {"stride": 2},
    {"stride": (2, 1, 3)},
    {"dilation": 2},
    {"padding": 1},
    {"padding": (1, 0, 1)},
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate"},
    {"padding": "same", "padding_mode": "circular"},
    {"groups": 2, "padding": 1},
    {"groups": 4, "stride": 2},
    {"stride": 2, "dilation": (1, 2, 1), "padding": 1, "groups": 2},
    {"stride": 2, "padding": "same"},
    {"groups": 3},
)
TRANSPOSED: tuple[dict[str, Any], ...] = (
    {},
    {"bias": False},
    {"stride": 2},
    {"stride": (2, 1, 3)},
    {"stride": 2, "output_padding": 1},
    {"dilation": 2},
    {"padding": 1},
    {"groups": 2, "stride": 2},
    {"groups": 4},
    {"stride": 2, "padding": 1, "dilation": 2, "output_padding": 1},
    {"padding": 1, "padding_mode": "reflect"},
    {"output_padding": 3},
)


class Experts(nn.Module):
    """A stack of matrices in one product; `stored` inputs first or outputs first."""

    def __init__(self, inputs_first: bool = False) -> None:
        super().__init__()
        self.inputs_first = inputs_first
        shape = (3, 6, 8) if inputs_first else (3, 8, 6)
        self.weight = nn.Parameter(torch.randn(shape) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight if self.inputs_first else self.weight.mT)


class Attention(nn.Module):
    """`nn.MultiheadAttention` with its weights averaged into the result."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y, weights = self.attention(q, k, v)
        return y + weights.mean()


class Recurrent(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(6, 8, **options)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)[0]
        return found


@dataclass(frozen=True)
class Cell:
    """One layer: its kind, its options, how to make it, and what it is given."""

    kind: str
    options: dict[str, Any]
    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...] = field(repr=False)

    @property
    def numbers(self) -> tuple[tuple[torch.dtype, bool], ...]:
        """Dtypes, and whether at full rank, in which the cell is run."""
        conv = self.kind.startswith("Conv")
        few = conv and bool(self.options) and not self.kind.endswith("1d")
        dtypes = (torch.float32,) if few else (torch.float64, torch.float32, torch.bfloat16)
        return (*((dtype, True) for dtype in dtypes), *([(torch.float32, False)] if conv else []))

    @property
    def name(self) -> str:
        """Kind and options."""
        return ", ".join([self.kind, *(f"{k}={v}" for k, v in self.options.items())])


def cells() -> Iterator[Cell]:
    """Yield every layer of the grid; making one may raise what the library raises."""
    for n in (1, 2, 3):
        for turned, grid in (("", CONV), ("Transpose", TRANSPOSED)):
            kind = f"Conv{turned}{n}d"
            for options in grid:
                yield _convolution(kind, n, options)
    for options in ({}, {"bias": False}):
        yield _cell("Linear", options, lambda o: nn.Linear(6, 8, **o), (2, 3, 6))
    for options in ({}, {"padding_idx": 2}):
        ids = torch.tensor([[0, 2, 11], [5, 5, 2]])
        yield Cell("Embedding", options, _made(lambda o: nn.Embedding(12, 6, **o), options), (ids,))
    yield _cell("HF Conv1D", {}, _hugging, (2, 3, 6))
    for options in ({}, {"bias": False}, {"batch_first": True}, {"kdim": 6, "vdim": 5}):
        given = dict(options)
        widths = (8, given.get("kdim", 8), given.get("vdim", 8))
        generator = torch.Generator().manual_seed(5)
        q, k, v = (torch.randn(4, 4, w, generator=generator) for w in widths)
        yield Cell(
            "MultiheadAttention", options, _made(lambda o: Attention(**o), options), (q, k, v)
        )
    for kind in ("LSTM", "GRU", "RNN"):
        for options in ({}, {"bias": False}, {"bidirectional": True, "num_layers": 2}):
            made = _made(lambda o, k=kind: Recurrent(k, **o), options)
            yield Cell(kind, options, made, (torch.ones(4, 2, 6).cumsum(0) / 4,))
    options = {"proj_size": 3, "batch_first": True}
    yield _cell("LSTM", options, lambda o: Recurrent("LSTM", **o), (2, 4, 6))
    for options in ({}, {"inputs_first": True}):
        yield _cell("Experts", options, lambda o: Experts(**o), (3, 4, 6))


def _convolution(kind: str, n: int, options: dict[str, Any]) -> Cell:
    own = {k: v[:n] if isinstance(v, tuple) else v for k, v in options.items()}
    return _cell(kind, own, lambda o: getattr(nn, kind)(4, 8, KERNEL[:n], **o), (2, 4, *PIXELS[:n]))


def _cell(
    kind: str, options: dict[str, Any], make: Callable[[dict[str, Any]], nn.Module], shape: Any
) -> Cell:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return Cell(kind, options, _made(make, options), (x,))


def _made(
    make: Callable[[dict[str, Any]], nn.Module], options: dict[str, Any]
) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make(options).eval()

    return made


def _hugging(options: dict[str, Any]) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    made: nn.Module = Conv1D(8, 6)
    return made
