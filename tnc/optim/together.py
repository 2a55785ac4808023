"""Several optimizers as one: each steps its own groups, everything else is in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import BindError
from tnc.optim.loading import mended

PART = "part"
"""The key of a group that names the optimizer that steps it."""


class Together(torch.optim.Optimizer):
    """An optimizer whose groups are stepped by optimizers of several classes, its `parts`.

    `param_groups` are those of the parts, the same dictionaries, so that schedulers, hooks and
    gradient scalers work on them; the state is one mapping that all parts hold. Each group has a
    key `part`, the name of what steps it, by which `add_param_group` and `load_state_dict` tell
    them apart. A closure is called once, before the parts step.

    Raises BindError for a part that cannot be one of several: it is `Together` itself, or needs the
    closure in its step.

    >>> import torch
    >>> net = torch.nn.Linear(4, 4)
    >>> sgd, adam = torch.optim.SGD([net.weight]), torch.optim.Adam([net.bias])
    >>> made = Together({"sgd": sgd, "adam": adam})
    >>> [group["part"] for group in made.param_groups]
    ['sgd', 'adam']
    """

    parts: tuple[torch.optim.Optimizer, ...]

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer]) -> None:
        for name, part in parts.items():
            if isinstance(part, Together | torch.optim.LBFGS):
                raise BindError(
                    f"{type(part).__name__} cannot be one of several optimizers",
                    where=f"part {name}",
                    hint="give optimizers that step by gradients alone, each with its parameters",
                )
        if not parts:
            raise BindError("there is no optimizer to put together", hint="give one or more")
        self._names = tuple(parts)
        self.parts = ()
        groups = [group for part in parts.values() for group in part.param_groups]
        super().__init__([{"params": list(group["params"])} for group in groups], {})
        self.parts = tuple(parts.values())
        for name, part in zip(self._names, self.parts):
            for group in part.param_groups:
                group[PART] = name
        self._join(groups)

    def _join(self, groups: Iterable[dict[str, Any]]) -> None:
        """Let all parts hold one state, and hold the groups in the given order."""
        self.param_groups = list(groups)
        self.state = defaultdict(dict)
        for part in self.parts:
            self.state.update(part.state)
            part.state = self.state

    def part_of(self, group: Mapping[str, Any] | None) -> torch.optim.Optimizer:
        """Return the part that steps a group. Raises BindError for a group of none."""
        for part in self.parts:
            if any(own is group for own in part.param_groups):
                return part
        raise BindError(
            f"the group is of none of the parts {', '.join(self._names)}",
            hint="ask about one of `optimizer.param_groups`",
        )

    def adopt(self, model: nn.Module) -> None:
        """Tell the parts that read the model which one it is from now on."""
        for part in self.parts:
            adopt = getattr(part, "adopt", None)
            if callable(adopt):
                adopt(model)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Let every part take its step; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the part that its key `part` names. Raises BindError without one."""
        if not self.parts:  # torch's own constructor, which looks for parameters that are twice
            super().add_param_group(param_group)
            return
        name = param_group.get(PART)
        if name not in self._names:
            told = "does not say which part steps it" if name is None else f"has part {name!r}"
            raise BindError(
                f"a new group {told}",
                hint=f"give it a key 'part', one of {', '.join(self._names)}",
            )
        given = _tensors(param_group["params"])
        held = {id(p) for group in self.param_groups for p in group["params"]}
        if any(id(p) in held for p in given):
            raise ValueError("some parameters appear in more than one parameter group")
        part = self.parts[self._names.index(name)]
        part.add_param_group({**param_group, "params": _listed(param_group["params"])})
        self.param_groups.append(part.param_groups[-1])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state, part by part, each as its own class does.

        Raises BindError, with nothing changed, for a state whose groups are of other parts, and
        ValueError, as torch does, for groups of other sizes.
        """
        state_dict = mended(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        saved = state_dict["param_groups"]
        self._check_saved(saved)
        order: list[tuple[int, int]] = []  # of each group: its part, and its place there
        shares: list[list[dict[str, Any]]] = [[] for _ in self.parts]
        for group, theirs in zip(self.param_groups, saved):
            number = self.parts.index(self.part_of(group))
            order.append((number, len(shares[number])))
            shares[number].append(theirs)
        self._order_parts()
        known = {key for group in saved for key in group["params"]}
        common = {key: value for key, value in state_dict["state"].items() if key not in known}
        for part, groups in zip(self.parts, shares):
            ids = {key for group in groups for key in group["params"]}
            state = {key: value for key, value in state_dict["state"].items() if key in ids}
            part.load_state_dict({"state": state | common, "param_groups": groups})
        self._join(self.parts[number].param_groups[place] for number, place in order)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _check_saved(self, saved: list[dict[str, Any]]) -> None:
        mine = [group[PART] for group in self.param_groups]
        theirs = [group.get(PART) for group in saved]
        if mine != theirs:
            raise BindError(
                f"the saved state is of the parts {theirs}, the optimizer has {mine}",
                hint="build the optimizer with the settings that the state was saved with",
            )
        sizes = [len(group["params"]) for group in self.param_groups]
        if sizes != [len(group["params"]) for group in saved]:
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                "optimizer's group"
            )

    def _order_parts(self) -> None:
        """Give every part its groups in the order that they have here."""
        for part in self.parts:
            own = {id(group) for group in part.param_groups}
            part.param_groups = [group for group in self.param_groups if id(group) in own]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts, "_names": self._names}


def _listed(params: Any) -> Any:
    return [params] if isinstance(params, Tensor) else list(params)


def _tensors(params: Any) -> list[Tensor]:
    return [p[1] if isinstance(p, tuple) else p for p in _listed(params)]
