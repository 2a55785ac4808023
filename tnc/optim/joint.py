"""Rules whose update of one parameter needs the gradients of the others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.errors import BindError
from tnc.optim.kinds import Group
from tnc.optim.rule import Part, Rule


class JointRule(Rule):
    """A rule that sees all parameters of a step at once, those of all groups.

    Options in `shared` are one for all groups: `add_param_group` refuses a group that differs.
    """

    shared: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def update_together(self, parts: Sequence[Part]) -> None:
        """Change the weights and slots of all parts in place; there is one part at least."""

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        self.update_together([Part(weight, weight, gradient, state, dict(group))])

    def advance(self, parts: Iterable[Part]) -> None:
        opened = list(parts)
        if opened:
            self.update_together(opened)
        for part in opened:
            self._close(part)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group. Raises BindError where a shared option is not that of the others."""
        super().add_param_group(param_group)
        first, last = self.param_groups[0], self.param_groups[-1]
        for name in self.shared:
            if last[name] != first[name]:
                self.param_groups.pop()
                raise BindError(
                    f"{type(self).__name__}: {name} is {last[name]!r} here and {first[name]!r} in "
                    "the first group, and one matrix stands for all groups",
                    where=f"group {len(self.param_groups)}",
                    hint=f"give {name} once, as an argument of the rule",
                )


def together(parts: Iterable[Tensor]) -> Tensor:
    """Add up small tensors of several parameters, in float64, on the device of the first."""
    found: Tensor | None = None
    for part in parts:
        wide = part.double()
        found = wide.clone() if found is None else found.add_(wide.to(found.device))
    if found is None:
        return torch.zeros((), dtype=torch.float64)
    return found
