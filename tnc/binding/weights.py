"""The weights of a model by name, dense or as cores: what binding compares of two models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tnc.errors import BindError
from tnc.nn import StructuredLayer
from tnc.nn.rebuilt import SUFFIX
from tnc.optim.transport import Transport


@dataclass(frozen=True, eq=False)
class Beside:
    """Cores that are trained beside a frozen weight: an adapter's.

    `parameter` is the name that the weight has in its module, `path` that of the layer below it.
    `dense` returns the weight with what is added, in its stored layout, and `moves` the maps
    between that and the cores, at their present values. `reason` says why there are no such maps.
    """

    parameter: str
    path: str
    layer: StructuredLayer
    dense: Callable[[], Tensor]
    moves: Callable[[], Transport]
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Cored:
    """A weight that is cores: the name that it has when dense, and the layer that holds it.

    With `beside` the cores are those of an adapter, and the weight itself is frozen.
    """

    name: str
    path: str
    layer: StructuredLayer
    beside: Beside | None = None

    def dense(self) -> Tensor:
        """Return the dense weight, in the layout of the dense layer."""
        return self.layer.weight if self.beside is None else self.beside.dense()

    def moves(self) -> Transport:
        """Return the maps between the weight and its cores, at their present values."""
        if self.beside is not None:
            return self.beside.moves()
        return Transport(self.layer.structure, self.layer.tensors())

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

    def label(self, name: str) -> str:
        """Return the name of a core in the model."""
        return f"{self.path}.cores.{name}" if self.path else f"cores.{name}"

    def equals(self, other: Cored) -> bool:
        """Whether another weight has the same cores with the same values."""
        if self.layer.structure != other.layer.structure:
            return False
        return all(
            torch.equal(self.layer.cores[name].detach(), other.layer.cores[name].detach())
            for name in self.layer.structure.shapes
        )

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
        """The maps between the weight and its cores, as they were when first asked for."""
        return self.moves()

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

    A weight beside which an adapter is trained is the cores of that adapter. What a wrapper of
    torch adds to names is taken off. Raises BindError for parameters that are sharded, unless that
    is expected, and for weights with several adapters.
    """
    model = unwrapped(model)
    banks = _adapters(model)
    adapted = _adapted(model, banks)
    prefixes = tuple(f"{path}." for path in banks)
    cored: dict[str, Cored] = {weight.name: weight for weight in adapted}
    inside: set[str] = {weight.name for weight in adapted}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, StructuredLayer):
            name = _dense_name(path)
            if not path.startswith(prefixes):
                cored.setdefault(name, Cored(name, path, module))
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


def _dense_name(path: str) -> str:
    """Return the name of the dense weight that a structured layer stands for."""
    return path.removesuffix(SUFFIX) if path.endswith(SUFFIX) else _joined(path, "weight")


def _adapters(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Return by path the modules that hold adapters, with the path of whose they are.

    They are known by `beside()`, which yields what is trained beside the weights of their owner.
    """
    found: dict[str, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, child in module._modules.items():
            if hasattr(child, "beside") and isinstance(child, nn.Module):
                found[_joined(path, name)] = (path, module)
    return found


def _adapted(model: nn.Module, banks: Mapping[str, tuple[str, nn.Module]]) -> list[Cored]:
    """Return the weights beside which adapters are trained. Raises BindError."""
    found: list[Cored] = []
    for path, (owner, module) in banks.items():
        for one in model.get_submodule(path).beside(module):  # type: ignore[operator]
            structured = isinstance(module, StructuredLayer)
            name = _dense_name(owner) if structured else _joined(owner, one.parameter)
            if one.reason:
                raise BindError(
                    one.reason,
                    where=name,
                    hint="merge it, or build a new optimizer of adapters.parameters()",
                )
            found.append(Cored(name, f"{path}.{one.path}", one.layer, one))
    twice = [name for name, times in Counter(weight.name for weight in found).items() if times > 1]
    if twice:
        raise BindError(
            "several adapters in use are trained beside one weight",
            where=twice[0],
            hint="use one of them, or freeze the others",
        )
    return found


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
