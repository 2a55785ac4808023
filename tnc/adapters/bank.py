"""The deltas beside the weights of one module, by adapter and parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from tnc.adapters.base import base_weight
from tnc.adapters.chain import Chain
from tnc.adapters.combined import based, changed
from tnc.adapters.delta import Delta
from tnc.adapters.method import Call
from tnc.adapters.products import Pair
from tnc.binding.weights import Beside
from tnc.errors import PlanError
from tnc.nn import StructuredLayer
from tnc.optim.transport import Transport

BANK = "adapters_"

NOTHING: Mapping[str, Any] = {}
"""What a layer is called with after its input, mostly."""


class Bank(nn.Module):
    """The deltas of one module: `bank[adapter][parameter]`.

    `kind` names how the module applies its weight; it is empty where the weights are read by code.
    `merged` are weights that stand for the base, `loads` counts the states that were loaded.
    """

    changes: ClassVar[int] = 0
    """How often any bank got, lost or switched adapters: what was read of banks before is old."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.active = {}
        self.merged: dict[str, Tensor | StructuredLayer] = {}
        self.loads = 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bank:
        """Move what is merged too: it is no buffer, so that it is not saved."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, merged in self.merged.items():
            self.merged[name] = fn(merged) if isinstance(merged, Tensor) else merged._apply(fn)
        return self

    @property
    def active(self) -> Mapping[str, float]:
        """The adapters in use with their weights."""
        return self._active

    @active.setter
    def active(self, shares: Mapping[str, float]) -> None:
        self._active = dict(shares)
        Bank.changes += 1

    def held(self, adapter: str) -> Mapping[str, Delta]:
        """Return the deltas of an adapter by parameter; none where it has none here."""
        found = self._modules.get(adapter)
        return {} if found is None else dict(found.items())  # type: ignore[operator]

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that have a delta here."""
        return tuple(self._modules)

    @property
    def parameters_used(self) -> tuple[str, ...]:
        """The parameters that active adapters have deltas of."""
        named = (n for adapter in self.names for n in self.held(adapter) if self.using(n))
        return tuple(dict.fromkeys(named))

    def put(self, adapter: str, parameter: str, delta: Delta) -> None:
        """Add a delta. Raises PlanError for a name that is taken."""
        deltas = self._modules.get(adapter)
        if deltas is None:
            deltas = nn.ModuleDict()
            self.add_module(adapter, deltas)
        assert isinstance(deltas, nn.ModuleDict)
        if parameter in deltas:
            raise PlanError(f"{parameter} has an adapter named {adapter!r}", hint="choose a name")
        deltas[parameter] = delta
        delta.train(self.training)
        Bank.changes += 1

    def drop(self, adapter: str) -> None:
        """Remove an adapter."""
        self._modules.pop(adapter, None)
        self.switch(adapter, None)

    def switch(self, adapter: str, share: float | None) -> None:
        """Use an adapter times a share from now on, or, with None, no longer."""
        others = {name: own for name, own in self._active.items() if name != adapter}
        self.active = others if share is None else {**others, adapter: share}

    def using(self, parameter: str) -> list[tuple[Delta, float]]:
        """Return the active deltas of a parameter with their weights."""
        found = []
        for name, weight in self._active.items():
            held = self._modules.get(name)
            if held is not None and parameter in held:  # type: ignore[operator]
                found.append((held[parameter], weight))  # type: ignore[index]
        return found

    def changed(self, parameter: str, weight: Tensor) -> Tensor:
        """Return a weight with what the active adapters add to it."""
        if parameter in self.merged:
            found = self.merged[parameter]
            return found.weight if isinstance(found, StructuredLayer) else found
        return changed(self.using(parameter), weight)

    def based(self, parameter: str, weight: Tensor) -> Tensor:
        """Return what stands for a weight: itself, unless an active adapter has its own."""
        return based(self.using(parameter), weight)

    def read(self, parameter: str, weight: Tensor) -> Tensor:
        """Return a weight as forward passes read it: `changed`, and what training adds to that."""
        total = self.changed(parameter, weight)
        for delta, _ in self.using(parameter) if not self.merged else ():
            stirred = delta.stirred()
            if stirred is not None:
                total = total + stirred.permute(delta.site.unordered).to(weight.dtype)
        return total

    def beside(self, module: nn.Module) -> Iterator[Beside]:
        """Yield what is trained beside the weights of a module: read by `tnc.bind`."""
        for name in dict.fromkeys(n for adapter in self.active for n in self.held(adapter)):
            for adapter, share in self.active.items():
                delta = self.held(adapter).get(name)
                if delta is None or not any(core.requires_grad for core in delta.cores.values()):
                    continue
                whole = partial(self._whole, name, module)
                kind = type(delta.method)
                reason = ""
                if not kind.plain():
                    reason = f"what {delta.method} adds is no sum of networks of its cores"
                moves = partial(_moves, delta, share, module, name)
                yield Beside(name, f"{adapter}.{name}.layer", delta.layer, whole, moves, reason)

    def _whole(self, name: str, module: nn.Module) -> Tensor:
        return self.changed(name, base_weight(module, name))

    def chain(self) -> Chain | None:
        """Return what the active adapters add to the layer as pairs; None where it is no such."""
        using = self.using("weight")
        pairs: list[Pair] = []
        dropout, scaled = 0.0, None
        for delta, share in using:
            kind = type(delta.method)
            found = delta.pairs(share) if kind.adds_delta() else ()
            if not found:
                return None
            pairs += found
            if delta.training and delta.dropout:
                dropout = delta.dropout
            if kind.scales_rows():
                scaled = delta
        alone = len(using) == 1 and using[0][1] == 1.0
        if not pairs or (not alone and (dropout or scaled is not None)):
            return None
        return Chain(pairs, dropout, scaled)

    def added(self, call: Call) -> Tensor:
        """Return a layer's output with what the active adapters add to it."""
        total = call.y
        for delta, share in self.using("weight"):
            part = delta.method.added(delta, call)
            total = total + (part if share == 1.0 else part * share).to(total.dtype)
        return self.stirred(total, call.x, call.rest)

    def stirred(self, y: Tensor, x: Tensor, rest: Mapping[str, Any] = NOTHING) -> Tensor:
        """Return a layer's output with what training alone adds to its weight."""
        for delta, _ in self.using("weight"):
            more = delta.stirred()
            if more is not None:
                y = y + delta.product(x, more, **rest).to(y.dtype)
        return y


def _moves(delta: Delta, share: float, module: nn.Module, name: str) -> Transport:
    scale: float | Tensor = delta.factor * share
    if type(delta.method).scales_rows():
        rows = delta.method.rows(delta, base_weight(module, name).detach())
        assert rows is not None
        scale = rows.detach() * scale
    return Transport(delta.layer.structure, delta.tensors(), scale)


_NAMED = Bank("")


def check_name(name: str, where: str = "") -> None:
    """Raise PlanError where an adapter cannot be named so."""
    wrong = not name or any(mark in name for mark in "./") or name.startswith("_")
    if wrong or hasattr(_NAMED, name):
        raise PlanError(
            f"an adapter cannot be named {name!r}",
            where=where,
            hint="choose a word without dots, slashes or a leading _, other than "
            "names that modules use themselves",
        )


def bank_of(module: nn.Module) -> Bank | None:
    """Return a module's bank, where it has one."""
    found = module._modules.get(BANK)
    return found if isinstance(found, Bank) else None


def banks_of(model: nn.Module) -> Iterator[tuple[nn.Module, Bank]]:
    """Yield the adapted modules of a model with their banks."""
    for module in model.modules():
        bank = bank_of(module)
        if bank is not None:
            yield module, bank
