"""What adapters do in training, tied to the optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tnc.adapters.adapters import Adapters
from tnc.adapters.delta import Delta
from tnc.errors import BindError


class Followed:
    """The hooks by which an optimizer's step runs what the methods ask for.

    Before a step: gradients of penalties are added, then `gradients_`. After it: `proximal_` with
    the rate of the parameter's group, then `event_`, whose reports are kept in `events` as
    (step, weight, what was done). `steps` counts.
    """

    def __init__(self, adapters: Adapters, optimizer: torch.optim.Optimizer) -> None:
        self.adapters, self.optimizer = adapters, optimizer
        self.steps = 0
        self.events: list[tuple[int, str, str]] = []
        self._handles: Sequence[RemovableHandle] = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return what resumes: how many steps were taken."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.steps = int(state["steps"])

    def _deltas(self) -> list[Delta]:
        active = self.adapters.active
        return [d for name in active for d in self.adapters.deltas(name).values()]

    def _before(self, *_: Any) -> None:
        for delta in self._deltas():
            with torch.enable_grad():
                penalty = delta.method.penalty(delta)
            if penalty is not None:
                _add_gradient(penalty, delta)
            with torch.no_grad():
                delta.method.gradients_(delta)

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        self.steps += 1
        for delta in self._deltas():
            delta.method.proximal_(delta, self._rate(delta))
            told = delta.method.event_(delta, self.steps, self.optimizer)
            if told:
                self.events.append((self.steps, delta.site.name, told))

    def _rate(self, delta: Delta) -> float:
        mine = {id(p) for p in delta.trained.values()}
        for group in self.optimizer.param_groups:
            if any(id(p) in mine for p in group["params"]):
                return float(group["lr"])
        return 0.0


def follow(adapters: Adapters, optimizer: torch.optim.Optimizer) -> Followed:
    """Let an optimizer's steps run what the active adapters ask for; `close()` ends it.

    Raises BindError where the optimizer trains nothing of the adapters.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in adapters.parameters()):
        raise BindError(
            "the optimizer has no parameter of the adapters",
            hint="build it from adapters.parameters()",
        )
    return Followed(adapters, optimizer)


def _add_gradient(penalty: torch.Tensor, delta: Delta) -> None:
    trained: list[nn.Parameter] = list(delta.trained.values())
    found = torch.autograd.grad(penalty, trained, allow_unused=True)
    for parameter, gradient in zip(trained, found):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
