"""Whether modules have adapters: what layers below those of adapters must know to refuse them."""

from __future__ import annotations

from torch import nn

ADAPTED = "_adapted_parameters"
"""An attribute of classes of adapted modules: the names of the parameters that have deltas."""


def has_deltas(module: nn.Module) -> bool:
    """Say whether a module itself has adapters beside its weights."""
    return bool(getattr(type(module), ADAPTED, ()))


def refusal(model: nn.Module, what: str) -> str:
    """Say why something cannot be done to a model with adapters; empty for one without."""
    found = [path or type(module).__name__ for path, module in model.named_modules()
             if has_deltas(module)]  # fmt: skip
    return f"{what}: {found[0]} has adapters" if found else ""
