"""Parameters that code reads by name, rebuilt from cores at each read.

`F.linear(x, self.w)`, `nn.MultiheadAttention.in_proj_weight`: the code owns the operation, so the
weight itself must be there. The module's class gains a property for it, by a subclass of the same
name that pickles and deep-copies as the original class plus its properties.
"""

from __future__ import annotations

import copyreg
from typing import Any

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
    module.add_module(name + SUFFIX, layer)
    module.__class__ = rebuilt_class(base, tuple(sorted(names)))


def rebuilt_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of `base` with a rebuilding property for every name, made once."""
    key = (base, names)
    if key not in _CLASSES:
        body: dict[str, Any] = {name: property(_reader(name)) for name in names}
        body |= {
            _MARK: names,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": _reduce,
        }
        _CLASSES[key] = type(base.__name__, (base,), body)
    return _CLASSES[key]


def rebuilt_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that a module rebuilds."""
    return getattr(type(module), _MARK, ())


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def _base(kind: type[nn.Module]) -> type[nn.Module]:
    return kind.__mro__[1] if hasattr(kind, _MARK) else kind


def _reader(name: str) -> Any:
    key = name + SUFFIX

    def read(self: nn.Module) -> Tensor:
        layer = self._modules[key]
        assert isinstance(layer, StructuredLayer)
        return layer.weight

    return read


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
