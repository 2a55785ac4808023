"""The weights of a model by name, dense or as cores: what binding compares of two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tnc.errors import BindError
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

    @property
    def key(self) -> tuple[int, ...]:
        """The identities of the cores: equal for the names of one tied weight."""
        return tuple(id(core) for core in self.layer.cores.values())

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense weight, as a dense layer stores it."""
        shape = self.layer.structure.signature.shape
        return tuple(shape[self.order.index(axis)] for axis in range(len(shape)))

    @property
    def shares(self) -> Mapping[str, float]:
        """The share of its weight's decay that each trainable core takes.

        `1/N` where N cores of its network are trained; a sum decays when each of its networks does.
        """
        found: dict[str, float] = {}
        for term in self.layer.structure.terms:
            names = [core.name for core in term.equation.cores if core.name in self.trainable]
            found |= {name: 1.0 / len(names) for name in names}
        return found

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
    """A model's plain parameters by name, and its weights that are cores by their dense name.

    `order` is the place of every parameter in `model.parameters()`, by identity.
    """

    plain: Mapping[str, nn.Parameter]
    cored: Mapping[str, Cored]
    order: Mapping[int, int]


def weights_of(model: nn.Module, sharded: bool = False) -> Weights:
    """Read a model. Tied weights are there under each of their names.

    What a wrapper of torch adds to names is taken off. Raises BindError for parameters that are
    sharded, unless that is expected.
    """
    model = unwrapped(model)
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
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "full_tensor") and not sharded:
            raise BindError(
                "the parameter is sharded",
                where=name,
                hint="bind before fully_shard; then load the state into the sharded model's "
                "optimizer by torch.distributed.checkpoint.state_dict",
            )
    order = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    return Weights(plain, cored, order)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that DistributedDataParallel, DataParallel or torch.compile holds."""
    *_, inner = wrappers(model)
    return inner


def wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield what wraps a model, outermost first, and last the model itself."""
    yield model
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        yield from wrappers(model.module)
    elif isinstance(found := model._modules.get("_orig_mod"), nn.Module):
        yield from wrappers(found)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
