"""Gradients at points near the parameters: what SAM and GAM have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tnc.errors import BindError
from tnc.optim.wrappers.ball import Ball, Changes, Euclidean

Closure = Callable[[], Tensor]


class Nearby(ABC):
    """Takes steps of an optimizer with gradients that were looked up around the parameters.

    The closure clears gradients, runs the model, calls backward and returns the loss; it is called
    several times a step, so running statistics see every batch as often. Parameters are put back
    exactly. Schedulers are given `optimizer`, which also holds all state.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, ball: Ball | None = None) -> None:
        self.optimizer = optimizer
        self.ball: Ball = ball if ball is not None else Euclidean()

    @abstractmethod
    def settle(self, loss: Closure, gradients: Changes) -> dict[Tensor, Tensor]:
        """Return the gradients to step with, from those at the parameters; `loss` may be called."""

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:
        """Take one step; returns the loss at the parameters before it.

        Raises BindError without a closure, which is called at points nearby.
        """
        if closure is None:
            raise BindError(
                f"{type(self).__name__} needs the loss at nearby points",
                hint="step(closure); the closure clears gradients, calls backward, returns loss",
            )

        def evaluate() -> Tensor:
            with torch.enable_grad():
                return closure()

        found = evaluate()
        gradients = self.settle(evaluate, self.gradients())
        for parameter, gradient in gradients.items():
            parameter.grad = gradient.to(parameter.dtype)
        self.optimizer.step()
        return found

    def gradients(self) -> dict[Tensor, Tensor]:
        """Return copies of the gradients that parameters hold, in float32 at least."""
        return {
            parameter: parameter.grad.detach().to(_wide(parameter), copy=True)
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        }

    def at(self, loss: Closure, changes: Changes, length: float) -> dict[Tensor, Tensor]:
        """Return the gradients at the parameters plus `length` times the changes."""
        with moved(changes, length):
            loss()
            return self.gradients()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the optimizer's parameters."""
        self.optimizer.zero_grad(set_to_none)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        return self.optimizer.param_groups

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state: there is no other."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the optimizer's state."""
        self.optimizer.load_state_dict(state)


@contextmanager
def moved(changes: Changes, length: float) -> Iterator[None]:
    """Move parameters for a while; they come back bit for bit, also after an error."""
    before = {parameter: parameter.detach().clone() for parameter in changes}
    try:
        for parameter, change in changes.items():
            parameter.add_(change.to(parameter.dtype), alpha=length)
        yield
    finally:
        for parameter, old in before.items():
            parameter.copy_(old)


def radius(name: str, given: float) -> float:
    """Return a radius. Raises BindError where it is negative."""
    if not given >= 0:
        raise BindError(f"{name} is {given!r}", hint="give 0 or more")
    return float(given)


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
