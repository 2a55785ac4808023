"""Modules with adapters: the base weight stays where it is, deltas stand beside it.

An adapted module keeps its class (a subclass of the same name), its parameters and their names. It
gains a child `adapters_` that holds the deltas by adapter and parameter. Where a layer of the
library is called as a module, deltas act on its input and are added to its output. Where code reads
the weight itself, the weight is a property that gives it with what the adapters add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from tnc.adapters.applied import APPLIED, CHAINED
from tnc.adapters.chain import Chain
from tnc.adapters.combined import based, changed
from tnc.adapters.delta import Delta
from tnc.adapters.method import Call
from tnc.adapters.products import Pair
from tnc.binding.weights import Beside
from tnc.errors import PlanError
from tnc.nn import StructuredLayer
from tnc.nn.adapted import ADAPTED
from tnc.nn.rebuilt import disguised, forget_flat_, held, holding
from tnc.optim.transport import Transport

BANK = "adapters_"

ARGUMENTS = ("output_size",)
"""What a layer may be called with after its input, by place."""

NOTHING: Mapping[str, Any] = {}


class Bank(nn.Module):
    """The deltas of one module: `bank[adapter][parameter]`.

    `kind` names how the module applies its weight; it is empty where the weights are read by code.
    `active` are the adapters in use with their weights, `merged` weights that stand for the base.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.active: dict[str, float] = {}
        self.merged: dict[str, Tensor | StructuredLayer] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bank:
        """Move what is merged too: it is no buffer, so that it is not saved."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, merged in self.merged.items():
            self.merged[name] = fn(merged) if isinstance(merged, Tensor) else merged._apply(fn)
        return self

    def held(self, adapter: str) -> Mapping[str, Delta]:
        """Return the deltas of an adapter by parameter; none where it has none here."""
        found = self._modules.get(adapter)
        return {} if found is None else dict(found.items())  # type: ignore[operator]

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that have a delta here."""
        return tuple(self._modules)

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

    def drop(self, adapter: str) -> None:
        """Remove an adapter."""
        self._modules.pop(adapter, None)
        self.active.pop(adapter, None)

    def using(self, parameter: str) -> list[tuple[Delta, float]]:
        """Return the active deltas of a parameter with their weights."""
        found = []
        for name, weight in self.active.items():
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
            total = total + (part if share == 1.0 else part * share)
        return self.stirred(total, call.x, call.rest)

    def stirred(self, y: Tensor, x: Tensor, rest: Mapping[str, Any] = NOTHING) -> Tensor:
        """Return a layer's output with what training alone adds to its weight."""
        for delta, _ in self.using("weight"):
            more = delta.stirred()
            if more is not None:
                y = y + delta.product(x, more, **rest)
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


def install_bank_(module: nn.Module, kind: str, name: str) -> Bank:
    """Make a module an adapted one with regard to its parameter `name`; return its bank."""
    bank = bank_of(module)
    if bank is None:
        if BANK in vars(module) or BANK in module._modules:
            raise PlanError(f"the module has an attribute {BANK!r}", hint="rename it")
        bank = Bank(kind)
        bank.train(module.training)
        module.add_module(BANK, bank)
    names = adapted_names(module)
    if name not in names:
        module.__class__ = adapted_class(base_class(type(module)), tuple(sorted((*names, name))))
        forget_flat_(module)
    return bank


def remove_bank_(module: nn.Module) -> None:
    """Undo `install_bank_`: the module is as it was."""
    module.__class__ = base_class(type(module))
    del module._modules[BANK]
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


def adapted_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of a module that have deltas."""
    return getattr(type(module), ADAPTED, ())


def base_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that an adapted one was made of."""
    return kind.__mro__[1] if ADAPTED in vars(kind) else kind


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def adapted_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of `base` that minds the deltas of some parameters, made once."""
    key = (base, names)
    if key not in _CLASSES:
        readers = {name: property(_reader(base, name)) for name in names}
        body = {**readers, ADAPTED: names, "__reduce_ex__": _reduce, "forward": _forward(base)}
        _CLASSES[key] = disguised(base, body)
    return _CLASSES[key]


def base_weight(module: nn.Module, name: str) -> Tensor:
    """Return the weight of an adapted module without its adapters."""
    if name in module._parameters:
        found = module._parameters[name]
        assert found is not None
        return found
    return getattr(base_class(type(module)), name).fget(module)  # type: ignore[no-any-return]


def _reader(base: type[nn.Module], name: str) -> Callable[[nn.Module], Tensor]:
    def read(self: nn.Module) -> Tensor:
        bank = self._modules[BANK]
        assert isinstance(bank, Bank)
        return held(self, f"{name}+", lambda: bank.read(name, base_weight(self, name)))

    return read


def _forward(base: type[nn.Module]) -> Callable[..., Any]:
    reading = holding(base)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        bank = self._modules[BANK]
        assert isinstance(bank, Bank)
        if not bank.kind:
            return reading(self, *args, **kwargs)  # its weights are properties
        apply = APPLIED[bank.kind]
        if bank.merged:
            return apply(self, bank.merged["weight"], *args, **kwargs)
        if not bank.active:
            return apply(self, self._parameters.get("weight"), *args, **kwargs)
        own = self._parameters.get("weight")
        used = own if own is None else bank.based("weight", own)
        x, rest = (args[0], NOTHING) if len(args) == 1 and not kwargs else _split(args, kwargs)
        chain = bank.chain() if bank.kind in CHAINED and not rest else None
        y = None if chain is None else CHAINED[bank.kind](self, used, chain, x)
        if y is not None:
            return bank.stirred(y, x)
        y = apply(self, used, *args, **kwargs)
        read = partial(base_weight, self, "weight") if used is own else partial(_given, used)
        return bank.added(Call(x, y, self._parameters.get("bias"), read, rest))

    return forward


def _split(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any]]:
    """Return the input of a call and its other arguments by name, those that say something."""
    rest = dict(zip(ARGUMENTS, args[1:])) | dict(kwargs)
    if not args and not {"input", "x"} & set(rest):
        raise TypeError("forward() misses its input")
    x = args[0] if args else rest.pop("input" if "input" in rest else "x")
    return x, {name: value for name, value in rest.items() if value is not None}


def _given(weight: Any) -> Tensor:
    return weight  # type: ignore[no-any-return]


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    base = base_class(type(self))
    found: Any = base.__reduce_ex__(self, protocol)
    given = tuple(base if each is type(self) else each for each in found[1])
    return _restore, (found[0], given, adapted_names(self)), *found[2:]


def _restore(make: Callable[..., nn.Module], given: tuple[Any, ...], names: tuple[str, ...]) -> Any:
    module = make(*given)
    module.__class__ = adapted_class(type(module), names)
    return module
