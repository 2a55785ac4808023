"""What the adapters of a distilled model do in training, and what resumes it."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tnc.adapters import of
from tnc.adapters.delta import Delta
from tnc.adapters.following import follow

_MEMORY, _STATE = "adapters.memory.", "adapters.state"


class Attended:
    """The hooks of a model's adapters on the optimizer that trains it; nothing without adapters.

    Deltas are in training mode, whatever the model's: what they drop and draw is theirs.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        adapters = of(model)
        self.followed = follow(adapters, optimizer, seed=seed) if adapters.active else None
        for module in model.modules():
            if isinstance(module, Delta):
                module.train()

    @property
    def events(self) -> int:
        """How many events of methods there were."""
        return len(self.followed.events) if self.followed else 0

    def tensors(self) -> dict[str, Tensor]:
        """Return what resumes, as tensors by name."""
        if self.followed is None:
            return {}
        state = self.followed.state_dict()
        found = {
            f"{_MEMORY}{key}.{name}": value
            for key, told in state["deltas"].items()
            for name, value in told.pop("memory").items()
        }
        text = json.dumps(state).encode()
        return {**found, _STATE: torch.frombuffer(bytearray(text), dtype=torch.uint8)}

    def resume(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""
        if self.followed is None:
            return
        state = json.loads(bytes(tensors[_STATE].tolist()))
        for key, told in state["deltas"].items():
            prefix = f"{_MEMORY}{key}."
            held = {n: v for n, v in tensors.items() if n.startswith(prefix)}
            told["memory"] = {name.removeprefix(prefix): v for name, v in held.items()}
        self.followed.load_state_dict(state)

    def close(self) -> None:
        """Take the hooks away."""
        if self.followed is not None:
            self.followed.close()


def has_adapters(model: nn.Module) -> bool:
    """Say whether a model has adapters."""
    return bool(of(model).names)
