"""Modules become adapted ones: subclasses whose forward and weights mind the deltas beside them.

An adapted module keeps its class (a subclass of the same name), its parameters and their names. It
gains a child `adapters_`, its bank. Where a layer of the library is called as a module, deltas act
on its input and are added to its output. Where code reads the weight itself, the weight is a
property that gives it with what the adapters add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from tnc.adapters.applied import APPLIED, CHAINED
from tnc.adapters.bank import BANK, NOTHING, Bank, bank_of
from tnc.adapters.base import adapted_names, base_class, base_weight
from tnc.adapters.merging import after_loading_
from tnc.adapters.method import Call
from tnc.errors import PlanError
from tnc.nn.adapted import ADAPTED
from tnc.nn.rebuilt import disguised, forget_flat_, held, holding, is_running, is_sharded

ARGUMENTS = ("output_size",)
"""What a layer may be called with after its input, by place."""


def install_bank_(module: nn.Module, kind: str, name: str) -> Bank:
    """Make a module an adapted one with regard to its parameter `name`; return its bank."""
    bank = bank_of(module)
    if bank is None:
        if BANK in vars(module) or BANK in module._modules:
            raise PlanError(f"the module has an attribute {BANK!r}", hint="rename it")
        bank = Bank(kind)
        bank.train(module.training)
        module.add_module(BANK, bank)
        module.register_load_state_dict_post_hook(after_loading_)  # type: ignore[no-untyped-call]
    names = adapted_names(module)
    if name not in names:
        module.__class__ = adapted_class(base_class(type(module)), tuple(sorted((*names, name))))
        forget_flat_(module)
    return bank


def remove_bank_(module: nn.Module) -> None:
    """Undo `install_bank_`: the module is as it was."""
    module.__class__ = base_class(type(module))
    del module._modules[BANK]
    Bank.changes += 1
    hooks = module._load_state_dict_post_hooks
    for key in [key for key, hook in hooks.items() if hook is after_loading_]:
        del hooks[key]
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def adapted_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of `base` that minds the deltas of some parameters, made once."""
    key = (base, names)
    if key not in _CLASSES:
        readers = {name: property(_reader(base, name)) for name in names}
        body = {**readers, ADAPTED: names, "__reduce_ex__": _reduce, "forward": _forward(base)}
        _CLASSES[key] = disguised(base, body)
    return _CLASSES[key]


def _reader(base: type[nn.Module], name: str) -> Callable[[nn.Module], Tensor]:
    def read(self: nn.Module) -> Tensor:
        bank = self._modules[BANK]
        assert isinstance(bank, Bank)
        own = self._parameters.get(name)
        if own is not None and is_sharded(own) and not is_running(self):
            return own  # FSDP takes what it reads here for the parameter itself
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
