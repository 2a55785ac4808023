"""The weights of a model by name, dense or as cores: what binding compares of two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tnc.nn import StructuredLayer
from tnc.nn.rebuilt import SUFFIX
from tnc.optim.transport import Transport


@dataclass(frozen=True, eq=False)
class Cored:
    """A weight that is cores: the name that it has when dense, and the layer that holds it."""

    name: str
    path: str
    layer: StructuredLayer

    @property
    def cores(self) -> Mapping[str, nn.Parameter]:
        """Parameters by core."""
        return {name: self.layer.cores[name] for name in self.layer.structure.shapes}

    @property
    def trainable(self) -> tuple[str, ...]:
        """The cores that a gradient reaches and that require one."""
        return tuple(
            name for name in self.transport.trainable if self.layer.cores[name].requires_grad
        )

    @cached_property
    def transport(self) -> Transport:
        """The maps between the weight and its cores, at their present values."""
        return Transport(self.layer.structure, self.layer.tensors())

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The stored axis of each axis of the map: `weight.permute(order)` is outputs first."""
        shape = self.layer.structure.signature.shape
        marked = torch.empty(tuple(range(2, 2 + len(shape))), device="meta")
        stored = [size - 2 for size in self.layer.view.layout(marked).shape]
        return tuple(stored.index(axis) for axis in range(len(shape)))

    def mapped(self, stored: Tensor) -> Tensor:
        """Bring a tensor of the dense weight's layout to that of the map, outputs first."""
        return stored.permute(self.order)

    def stored(self, mapped: Tensor) -> Tensor:
        """Bring a tensor of the map's layout to that of the dense weight."""
        return self.layer.view.layout(mapped).contiguous()

    def kept(self, name: str, whole: Tensor) -> Tensor:
        """Return what a core stores of a tensor of its whole shape: its entries, if sparse."""
        positions = self.layer.positions.get(name)
        if positions is None:
            return whole.contiguous()
        return whole.reshape(-1)[positions.long()].contiguous()

    def whole(self, name: str, kept: Tensor) -> Tensor:
        """Return the whole core of what is kept of it, zeros filled in."""
        positions = self.layer.positions.get(name)
        if positions is None:
            return kept
        shape = self.layer.structure.shapes[name]
        flat = kept.new_zeros(torch.Size(shape).numel())
        return flat.scatter(0, positions.long(), kept).reshape(shape)


@dataclass(frozen=True, eq=False)
class Weights:
    """A model's plain parameters by name, and its weights that are cores by their dense name."""

    plain: Mapping[str, nn.Parameter]
    cored: Mapping[str, Cored]


def weights_of(model: nn.Module) -> Weights:
    """Read a model. Tied weights are there under each of their names."""
    cored: dict[str, Cored] = {}
    inside: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, StructuredLayer):
            name = path.removesuffix(SUFFIX) if path.endswith(SUFFIX) else _joined(path, "weight")
            cored[name] = Cored(name, path, module)
            inside |= {_joined(path, f"cores.{core}") for core in module.cores}
    plain = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in inside
    }
    return Weights(plain, cored)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
