"""A rule of `tnc.optim` as binding sees it: what its slots are and how they move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tnc.optim.kinds import Form, Group, Kind, State

if TYPE_CHECKING:
    from tnc.optim.rule import Rule


class RuleForm(Form):
    """The form of a rule: a fresh state is what the rule starts with."""

    def __init__(self, kinds: Mapping[str, Kind], *, rule: Rule, **given: Any) -> None:
        super().__init__(kinds, **given)
        object.__setattr__(self, "_rule", rule)

    def initial(self, parameter: Tensor, group: Group) -> dict[str, Any]:
        rule: Rule = self._rule  # type: ignore[attr-defined]
        wide = torch.promote_types(parameter.dtype, torch.float32)
        return rule.fresh(rule.reached(parameter.detach()).to(wide), group)

    def read(self, state: State, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        rule: Rule = self._rule  # type: ignore[attr-defined]
        return rule.read(state, parameter, group)

    def write(self, moved: State, core: Tensor, group: Group) -> dict[str, Any]:
        rule: Rule = self._rule  # type: ignore[attr-defined]
        return rule.write(moved, core, group)

    def grams(self, shape: tuple[int, ...], group: Group) -> Mapping[str, tuple[int, ...]]:
        rule: Rule = self._rule  # type: ignore[attr-defined]
        return rule.grams(shape, group)

    def start(self, slot: str, parameter: Tensor, group: Group) -> Any:
        return self.initial(parameter, group)[slot]
