"""An adapted module as it is without its adapters: its class and its weights."""

from __future__ import annotations

from torch import Tensor, nn

from tnc.nn.adapted import ADAPTED


def adapted_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters of a module that have deltas."""
    return getattr(type(module), ADAPTED, ())


def base_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that an adapted one was made of."""
    return kind.__mro__[1] if ADAPTED in vars(kind) else kind


def base_weight(module: nn.Module, name: str) -> Tensor:
    """Return the weight of an adapted module without its adapters."""
    if name in module._parameters:
        found = module._parameters[name]
        assert found is not None
        return found
    return getattr(base_class(type(module)), name).fget(module)  # type: ignore[no-any-return]
