"""Rules that learn from what flows through the linear layers of the model that they train."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tnc.errors import BindError
from tnc.optim.capturing import Capture, Captured, Gather
from tnc.optim.declaring import argument
from tnc.optim.kinds import Group
from tnc.optim.options import Count
from tnc.optim.rule import STEP, Rule


class WatchingRule(Rule):
    """A rule that takes a statistic of each linear layer every `update_every` steps.

    The option `others` says what becomes of parameters that are no weight of a linear layer of the
    model, such as cores: 'refuse' is an error, 'plain' trains them without a preconditioner. Call
    `release` to take the hooks off the model; a rule that is deleted takes them along.
    """

    gather: ClassVar[Gather]

    model: nn.Module = argument(kw_only=False)
    others: Literal["refuse", "plain"] = "refuse"
    update_every: Count = 10

    def attach(self) -> None:
        self._intervals: dict[int, int] | None = None
        self._capture = Capture(self.model, self.gather, self._listens)

    @abstractmethod
    def learn(
        self, parameter: Tensor, captured: Captured | None, state: dict[str, Any], group: Group
    ) -> None:
        """Update the preconditioner in the state; nothing came where `captured` is None.

        Called in every step in which it is due, first in that of the parameter's start.
        """

    @abstractmethod
    def state_bytes(self, shape: tuple[int, ...], group: Group, watched: bool = True) -> int:
        """Return the bytes of the slots of a parameter: of a linear layer's weight, or another."""

    def bytes_of(self, parameter: Tensor, group: Group) -> int:
        return self.state_bytes(tuple(parameter.shape), group, self._capture.watches(parameter))

    def adopt(self, model: nn.Module) -> None:
        """Watch another model: hooks come off the one before."""
        self.release()
        super().adopt(model)

    def release(self) -> None:
        """Take the hooks off the model."""
        self._capture.release()

    def refuses(self, weight: Tensor, group: Group) -> str:
        if group["others"] == "plain" or self._capture.watches(weight):
            return ""
        return "it is not the weight of a linear layer of the model (others='plain' would allow it)"

    def observe(self, parameter: Tensor, state: dict[str, Any], group: Group) -> None:
        if (int(state[STEP]) - 1) % group["update_every"]:
            return
        if not self._capture.watches(parameter):
            if group["others"] == "refuse":
                raise BindError(
                    f"{type(self).__name__} is to train a parameter of shape "
                    f"{tuple(parameter.shape)} that is no weight of a linear layer of its model",
                    hint="rule.adopt(model) gives it the model that is trained now; "
                    "others='plain' trains other parameters without a preconditioner",
                )
            return
        captured = self._capture.take(parameter)
        if captured is None and parameter.grad is not None and bool(parameter.grad.any()):
            raise BindError(
                f"{type(self).__name__} saw no inputs of a linear layer with a gradient, of shape "
                f"{tuple(parameter.shape)}",
                hint="run the model that the rule was given, with hooks: not a copy of it",
            )
        self.learn(parameter, captured, state, group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters. Raises BindError for one that the rule cannot train."""
        self._intervals = None
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._intervals = None

    def _listens(self, weight: Tensor) -> bool:
        """Whether the step to come is one that takes the statistic of a weight."""
        intervals = self._intervals
        if intervals is None:
            intervals = self._intervals = {
                id(parameter): int(group["update_every"])
                for group in self.param_groups
                for parameter in group["params"]
            }
        if id(weight) not in intervals:
            return False
        state = self.state.get(weight)
        steps = int(state[STEP]) if state else 0
        return steps % intervals[id(weight)] == 0


def eye(size: int, like: Tensor) -> Tensor:
    """Return the identity as a preconditioner starts, in float32 at least."""
    wide = torch.promote_types(like.dtype, torch.float32)
    return torch.eye(size, dtype=wide, device=like.device)
