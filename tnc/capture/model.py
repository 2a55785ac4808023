"""The model that a caller means: a module, or what holds one."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from tnc.errors import CaptureError


class Holder(Protocol):
    """What holds a model: what `tnc.compile` returned, or adapters."""

    @property
    def model(self) -> nn.Module:
        """The module."""
        ...


def model_of(given: Any, where: str = "model") -> nn.Module:
    """Return a module itself, or the one that a holder has.

    Raises CaptureError for anything else.
    """
    held = given if isinstance(given, nn.Module) else getattr(given, "model", None)
    if not isinstance(held, nn.Module):
        kind = given.__name__ if isinstance(given, type) else type(given).__name__
        told = f"the class {kind}" if isinstance(given, type) else f"a {kind}"
        raise CaptureError(
            f"{told} is no torch.nn.Module",
            where=where,
            hint="give the model itself, or what tnc.compile returned; a model that is known by "
            "its name or folder is loaded first",
        )
    return held
