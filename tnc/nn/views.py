"""Views of weights that are rebuilt, and views read from data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.errors import KernelError
from tnc.net import Structure
from tnc.nn.conv_view import ConvView
from tnc.nn.dense import Rebuild, plan_rebuild
from tnc.nn.embedding_view import EmbeddingView
from tnc.nn.linear_view import LinearView
from tnc.nn.spectral import SpectralView
from tnc.nn.view import Cores, View


@dataclass(frozen=True)
class StackView(View):
    """A stack of matrices, `y[e, n, o] = x[e, n, i] W[e, o, i]`: the experts of a mixture.

    `transposed` tells that the code keeps it as `(e, i, o)`.
    """

    name: ClassVar[str] = "stack"
    transposed: bool = False

    def prepare(self, structure: Structure) -> Rebuild:
        return plan_rebuild(structure)

    def apply(self, prepared: Rebuild, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        y = torch.matmul(x, prepared.run(cores).transpose(1, 2))
        return y if bias is None else y + bias

    def layout(self, weight: Tensor) -> Tensor:
        return weight.transpose(1, 2) if self.transposed else weight


@dataclass(frozen=True)
class StoredView(View):
    """A weight that its code reads itself: it is rebuilt with its axes in the stored order.

    `order` is the dimension of the map that each stored axis is.
    """

    name: ClassVar[str] = "stored"
    order: tuple[int, ...] = ()

    def prepare(self, structure: Structure) -> tuple[()]:
        return ()

    def apply(self, prepared: Any, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        raise KernelError("a stored weight is read by the model's code, it is not applied")

    def layout(self, weight: Tensor) -> Tensor:
        return weight.permute(self.order)


def view_from_json(data: Mapping[str, Any]) -> View:
    """Read what `View.as_json` wrote. Raises KernelError for an unknown view."""
    known: tuple[type[View], ...] = (
        LinearView,
        ConvView,
        EmbeddingView,
        StackView,
        SpectralView,
        StoredView,
    )
    kinds = {kind.name: kind for kind in known} | {"conv2d": ConvView}  # its name in format 1
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in data.items()
        if key != "view"
    }
    if data.get("view") not in kinds:
        raise KernelError(f"unknown view {data.get('view')!r}", hint=f"known: {sorted(kinds)}")
    return kinds[data["view"]](**options)
