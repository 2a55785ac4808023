"""A model whose weights are base and deltas at once: while it is adapted, or for good."""

from __future__ import annotations

from torch import Tensor, nn

from tnc.adapters.bank import banks_of
from tnc.adapters.base import base_weight
from tnc.adapters.installing import remove_bank_
from tnc.adapters.merging import Drift, Summed, acting, merged
from tnc.nn import StructuredLayer


def merge_(model: nn.Module) -> tuple[Drift, ...]:
    """Let every adapted weight stand for base and active deltas; return what rounding costs.

    Raises PlanError, with nothing changed, where a merged weight is not finite.
    """
    drifts: dict[str, Drift] = {}
    found = []
    for module, bank in banks_of(model):
        own: dict[str, Tensor | StructuredLayer] = {}
        for name in bank.parameters_used:
            made, drift = merged(module, bank, name)
            own[name] = acting(made)
            drifts[drift.weight] = drift
        found.append((bank, own))
    for bank, own in found:
        bank.merged = own
    return tuple(drifts.values())


def unload_(model: nn.Module, merge: bool) -> nn.Module:
    """Leave plain modules; with `merge` their weights have what the active deltas add.

    Weights that were tied with tied deltas stay so. Raises PlanError, with nothing changed, where a
    merged weight is not finite.
    """
    found: dict[tuple[int, ...], Tensor | Summed] = {}
    takers: list[tuple[nn.Module, str, Tensor | Summed]] = []
    for module, bank in banks_of(model):
        for name in bank.parameters_used if merge else ():
            held = (id(p) for delta, _ in bank.using(name) for p in delta.parameters())
            key = (*_weight_key(module, name), *held)
            if key not in found:
                made, _ = merged(module, bank, name)
                if isinstance(made, Tensor):
                    trains = base_weight(module, name).requires_grad
                    made = nn.Parameter(made, requires_grad=trains)
                found[key] = made
            takers.append((module, name, found[key]))
    for module, name, made in takers:
        if isinstance(made, Summed):
            assert isinstance(module, StructuredLayer)
            module.restructure_(made.structure, made.cores, made.positions)
        else:
            module._parameters[name] = made  # type: ignore[assignment]
    for module, _ in list(banks_of(model)):
        remove_bank_(module)
    return model


def _weight_key(module: nn.Module, name: str) -> tuple[int, ...]:
    """Return what is equal for the owners of one tied weight: tied deltas keep it tied."""
    if isinstance(module, StructuredLayer):
        return tuple(id(core) for core in module.cores.values())
    return (id(base_weight(module, name)),)
