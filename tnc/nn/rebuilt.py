"""Parameters that code reads by name, rebuilt from cores at each read.

`F.linear(x, self.w)`, `nn.MultiheadAttention.in_proj_weight`: the code owns the operation, so the
weight itself must be there. The module's class gains a property for it, by a subclass of the same
name that pickles and deep-copies as the original class plus its properties. Within one forward of
the module a weight is rebuilt once, however often it is read: a stack of experts is read expert by
expert.
"""

from __future__ import annotations

import copyreg
import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tnc.nn.layer import StructuredLayer

SUFFIX = "_structure"
_MARK = "_rebuilt_parameters"


def install_rebuilt_(module: nn.Module, name: str, layer: StructuredLayer) -> None:
    """Replace the parameter `name` of a module by a property that rebuilds it from `layer`.

    The cores live in the child module `NAME_structure`, so they are trained, moved and saved.
    """
    names = (*getattr(type(module), _MARK, ()), name)
    base = _base(type(module))
    del module._parameters[name]
    forget_flat_(module)
    module.add_module(name + SUFFIX, layer)
    module.__class__ = rebuilt_class(base, tuple(sorted(names)))


def rebuilt_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of `base` with a rebuilding property for every name, made once."""
    key = (base, names)
    if key not in _CLASSES:
        readers = {name: property(_reader(name)) for name in names}
        body = {**readers, _MARK: names, "__reduce_ex__": _reduce, "forward": holding(base)}
        _CLASSES[key] = disguised(base, body)
    return _CLASSES[key]


def disguised(base: type[nn.Module], body: Mapping[str, Any]) -> type[nn.Module]:
    """Return a subclass that goes by the name of its base, with `body`; weights are read anew."""
    named = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    recurrent = _RECURRENT if issubclass(base, nn.RNNBase) else {}
    return type(base.__name__, (base,), {**named, **body, **recurrent})


def forget_flat_(module: nn.Module) -> None:
    """Let a recurrent module read its weights by name: what it keeps of them is dropped."""
    if isinstance(module, nn.RNNBase):
        module.__dict__.pop("_flat_weights", None)
        module._flat_weight_refs = []


def rebuilt_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that a module rebuilds."""
    return getattr(type(module), _MARK, ())


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def _base(kind: type[nn.Module]) -> type[nn.Module]:
    made = next((each for each in kind.__mro__ if _MARK in vars(each)), None)
    return made.__mro__[1] if made is not None else kind


class _Held(threading.local):
    """The weights that running forwards have rebuilt, by module; a thread has its own."""

    def __init__(self) -> None:
        self.by_module: dict[int, dict[Any, Tensor]] = {}


_HELD = _Held()


def holding(base: type[nn.Module]) -> Any:
    """Wrap a class's forward so that what it rebuilds is kept until it returns."""

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        known = _HELD.by_module
        if torch.compiler.is_compiling() or id(self) in known:  # a compiler merges equal rebuilds
            return base.forward(self, *args, **kwargs)
        known[id(self)] = {}
        try:
            return base.forward(self, *args, **kwargs)
        finally:
            del known[id(self)]

    return forward


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which a process holds a part."""
    return hasattr(tensor, "full_tensor")


def is_running(module: nn.Module) -> bool:
    """Whether the forward of a module that `holding` wraps is running in this thread."""
    return id(module) in _HELD.by_module


def held(module: nn.Module, name: str, make: Callable[[], Tensor]) -> Tensor:
    """Return what `make` makes, once within one forward of the module (see `holding`)."""
    known = None if torch.compiler.is_compiling() else _HELD.by_module.get(id(module))
    if known is None:
        return make()
    key = (name, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    if key not in known:
        known[key] = make()
    return known[key]


def _reader(name: str) -> Any:
    child = name + SUFFIX

    def read(self: nn.Module) -> Tensor:
        layer = self._modules[child]
        assert isinstance(layer, StructuredLayer)
        return held(self, name, lambda: layer.weight)

    return read


def _flat_weights(self: nn.RNNBase) -> list[Tensor]:
    return [getattr(self, name) for name in self._flat_weights_names]


def _ignore(self: nn.RNNBase, *value: object) -> None:
    """The flat weights are read from the module each time: nothing is to be kept up to date."""


def _unchanged(self: nn.RNNBase) -> bool:
    return False


_RECURRENT: dict[str, Any] = {
    "_flat_weights": property(_flat_weights, _ignore),
    "_init_flat_weights": _ignore,
    "_weights_have_changed": _unchanged,
    "flatten_parameters": _ignore,
}


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    has_own = hasattr(self, "__getstate__")
    state = self.__getstate__() if has_own else self.__dict__  # type: ignore[no-untyped-call]
    return _restore, (_base(type(self)), rebuilt_names(self)), state


def _restore(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    return copyreg.__newobj__(rebuilt_class(base, names))  # type: ignore[attr-defined, no-any-return]


def restore_dense_(module: nn.Module, name: str, weight: nn.Parameter) -> None:
    """Undo `install_rebuilt_`: put a plain parameter back in the place of the property."""
    left = tuple(n for n in rebuilt_names(module) if n != name)
    del module._modules[name + SUFFIX]
    base = _base(type(module))
    module.__class__ = rebuilt_class(base, left) if left else base
    module.register_parameter(name, weight)
    if isinstance(module, nn.RNNBase) and not left:
        module._init_flat_weights()
