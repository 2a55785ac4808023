"""The weights of one adapter where modules hold them, with PEFT's layer for each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tnc.adapters.adapters import Adapters
from tnc.adapters.bank import bank_of
from tnc.adapters.base import base_weight
from tnc.adapters.delta import Delta
from tnc.adapters.peft.layers import PARAMETER, Found, Layer, layer_for
from tnc.errors import ArtifactError
from tnc.nn import StructuredLayer


@dataclass(frozen=True, eq=False)
class Held:
    """One adapted weight where one module holds it, with PEFT's layer for it."""

    path: str
    attribute: str
    delta: Delta
    found: Found
    base: Tensor

    @property
    def layer(self) -> Layer:
        """PEFT's layer."""
        assert self.found.layer is not None
        return self.found.layer

    @property
    def can_scale(self) -> bool:
        """Whether PEFT's layer has a magnitude for every row."""
        plain = self.found.layer is not PARAMETER and not self.found.attention
        return plain and self.delta.site.groups == 1


def held_by(adapters: Adapters, name: str) -> list[Held]:
    found: list[Held] = []
    paths: dict[int, list[str]] = {}
    for path, module in adapters.model.named_modules(remove_duplicate=False):
        if bank_of(module) is not None:
            paths.setdefault(id(module), []).append(path)
    for path, module in adapters.model.named_modules():
        bank = bank_of(module)
        for attribute, delta in (bank.held(name) if bank else {}).items():
            assert bank is not None
            layer = layer_for(adapters.model, path, attribute, bank.kind, delta.layer.view)
            twice = paths[id(module)]
            reason = layer.reason
            if len(twice) > 1:
                reason = f"PEFT wraps a module with two paths ({', '.join(twice)}) at the first"
            if reason:
                raise refused(delta, reason)
            base = _base(module, attribute)
            found.append(Held(path, attribute, delta, layer, base))
    if not found:
        raise ArtifactError(f"the adapter {name!r} has no weight")
    return found


def _base(module: nn.Module, attribute: str) -> Tensor:
    if isinstance(module, StructuredLayer):
        found: Tensor = StructuredLayer.weight.fget(module)  # type: ignore[attr-defined]
        return found.detach()
    return base_weight(module, attribute).detach()


def refused(delta: Delta, reason: str) -> ArtifactError:
    return ArtifactError(
        f"PEFT has no form for the adapter of {delta.site.name}: {reason}",
        where=delta.site.name,
        hint="leave the weight out, or merge: adapters.unload() gives a plain model",
    )
