"""torchao's Adam and AdamW, whose moments are kept in 8 bits, 4 bits or float8.

A slot is dequantised before it moves and quantised again for the core that it moves to, where that
is large enough to be quantised at all (4,096 entries, and a whole number of blocks).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tnc.optim.kinds import Form, Group, Kind, State, zero

PACKAGE = "torchao.optim."


def is_quantised(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer is one of torchao's that keep moments in buffers of its own types."""
    return any(
        kind.__module__.startswith(PACKAGE) and "_new_buffer" in vars(kind)
        for kind in type(optimizer).__mro__
    )


class QuantisedForm(Form):
    """Adam's form, with buffers that the optimizer makes itself."""

    def __init__(self, adam: Form, optimizer: Any) -> None:
        super().__init__(
            adam.kinds,
            present=adam.present,
            holds=adam.holds,
            decoupled=lambda group: bool(optimizer.is_adamw),
            forgets=adam.forgets,
        )
        object.__setattr__(self, "_optimizer", optimizer)

    def read(self, state: State, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        found = super().read(state, parameter, group)
        return {slot: floats(value) for slot, value in found.items()}

    def write(self, moved: State, core: Tensor, group: Group) -> dict[str, Any]:
        return {slot: self._buffer(slot, core).copy_(value) for slot, value in moved.items()}

    def start(self, slot: str, parameter: Tensor, group: Group) -> Any:
        if self.kinds[slot] is Kind.SCALAR:
            return zero(parameter, {})
        return self._buffer(slot, parameter)

    def _buffer(self, slot: str, core: Tensor) -> Tensor:
        signed = self.kinds[slot] is Kind.COVECTOR
        found: Tensor = self._optimizer._new_buffer(core.detach(), signed)  # type: ignore[attr-defined]
        return found


def floats(value: Tensor) -> Tensor:
    """Return a slot's values as an ordinary tensor."""
    decode = getattr(value, "dequantize", None)
    if type(value) is Tensor or decode is None:
        return value
    found: Tensor = decode()
    return found
