"""Put deltas beside the weights of a model."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.bank import bank_of
from tnc.adapters.delta import Delta
from tnc.adapters.installing import install_bank_
from tnc.adapters.method import Method
from tnc.adapters.place import Place
from tnc.adapters.start import Parts
from tnc.errors import CaptureError, PlanError
from tnc.net import Structure


def shared_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose parameters share the memory of the originals, frozen.

    Buffers are copied. Raises CaptureError where a model cannot be copied.
    """
    for path, module in model.named_modules():
        if isinstance(vars(module).get("forward"), FunctionType):
            raise CaptureError(
                "the module's forward was replaced by a function, which a copy would share: it "
                "would go on calling the original",
                where=path,
                hint="adapt_ changes the model in place",
            )
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
    }
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise CaptureError(
            f"the model cannot be copied: {str(error).split('. ')[0]}",
            where=type(model).__name__,
            hint="copy.deepcopy(model) shows it; adapt_ changes the model in place",
        ) from error


def check_free(model: nn.Module, place: Place, adapter: str) -> None:
    """Raise PlanError where a weight has an adapter of that name."""
    for owner in place.owners:
        bank = bank_of(model.get_submodule(owner.path))
        if bank is not None and owner.attribute in bank.held(adapter):
            raise PlanError(
                f"{place.site.name} has an adapter named {adapter!r}",
                where=place.site.name,
                hint="choose another name, or remove the adapter first",
            )


def train_also_(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Give the parameters that match patterns memory of their own and let them be trained.

    Returns their names. Raises PlanError for a pattern without a match.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: list[str] = []
    for pattern in patterns:
        found = [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(_owner(n), pattern)]
        if not found:
            raise PlanError(
                f"no parameter matches {pattern!r}", where="train", hint=f"such as {names[0]!r}"
            )
        chosen += [n for n in found if n not in chosen]
    train_(model, chosen)
    return tuple(chosen)


def train_(model: nn.Module, names: Iterable[str]) -> None:
    """Give parameters memory of their own and let them be trained."""
    own = dict(model.named_parameters())
    for name in names:
        own[name].data = own[name].detach().clone()
        own[name].requires_grad_(True)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def generator_for(seed: int, adapter: str, name: str) -> torch.Generator:
    """Return a generator that depends on seed, adapter and weight alone, in no order."""
    told = f"{seed}/{adapter}/{name}".encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(told).digest()[:7], "big"))


def refusal(place: Place, method: Method) -> str:
    """Say why a method cannot adapt the weight at a place; empty when it can."""
    if place.structured and method.compressed:
        return method.compressed
    return method.refuses(place.site)


class Pool:
    """The memory that cores of several deltas share, while they are attached."""

    def __init__(self) -> None:
        self.flats: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self.parameters: dict[tuple[Any, ...], nn.Parameter] = {}


def attach_(
    model: nn.Module,
    place: Place,
    adapter: str,
    method: Method,
    structure: Structure,
    parts: Parts,
    dtype: torch.dtype | None = None,
    pool: Pool | None = None,
) -> Delta:
    """Put one delta beside a weight, for all modules that hold it, and make it active.

    The parts are those of all owners: tied weights have tied deltas. Parameters are in `dtype`, by
    default that of the weight, but float32 for weights of 16 bits or fewer. Their memory is their
    own, but for parts that are parameters already.
    """
    first: Delta | None = None
    weight = place.weight(model)
    kind = dtype or torch.promote_types(weight.dtype, torch.float32)
    cores, extras, constants = (
        {n: _own(v, weight.device, kind) for n, v in values.items() if n not in parts.shared}
        for values in (parts.cores, parts.extras, parts.constants)
    )
    positions = {name: places.to(weight.device) for name, places in parts.positions.items()}
    for name in parts.shared:
        cores[name] = _common(parts.cores[name], weight.device, kind, pool or Pool())
    made = Parts(cores, extras, constants, positions)
    seen: set[int] = set()
    for owner, view in zip(place.owners, place.views):
        module = model.get_submodule(owner.path)
        if id(module) in seen:
            continue
        seen.add(id(module))
        bank = install_bank_(module, owner.kind, owner.attribute)
        if first is not None:
            shared = Parts(
                dict(first.cores),
                dict(first.extras.items()),
                made.constants,
                first.layer.positions,
            )
            delta = Delta(method, place.site, structure, view, shared)
            for name in made.constants:
                delta._buffers[name] = first._buffers[name]
        else:
            delta = Delta(method, place.site, structure, view, made)
            first = delta
        bank.put(adapter, owner.attribute, delta)
        bank.switch(adapter, bank.active.get(adapter, 1.0))
    assert first is not None
    return first


def _own(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a value in memory that nothing else has: starts are often parts of one matrix."""
    if isinstance(value, nn.Parameter):
        return value
    kind = dtype if value.is_floating_point() else value.dtype
    return value.detach().to(device, kind).clone(memory_format=torch.contiguous_format)


def _common(value: Tensor, device: torch.device, dtype: torch.dtype, pool: Pool) -> nn.Parameter:
    """Return a view of shared memory as a frozen parameter: one for all equal views."""
    memory = value.untyped_storage()
    key = (memory.data_ptr(), device, dtype)
    if key not in pool.flats:
        flat = value.detach().as_strided((memory.nbytes() // value.itemsize,), (1,), 0)
        pool.flats[key] = (flat, flat.to(device, dtype))  # the first keeps its address taken
    view = (tuple(value.shape), value.stride(), value.storage_offset())
    if (key, view) not in pool.parameters:
        made = pool.flats[key][1].as_strided(*view)
        pool.parameters[key, view] = nn.Parameter(made, requires_grad=False)
    return pool.parameters[key, view]
