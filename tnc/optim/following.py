"""What a bound optimizer does beside its own step: decay that means the same, and warming up.

Decoupled weight decay multiplies a weight by `1 - lr wd`. On N trainable cores that would decay
their product N times as much, so each core gets `(1 - lr wd)^(1/N)`. A core whose state was reset
takes its first steps shortened, growing linearly to full length. Both live in the core's state
(`decay_share`, `warm_left` of `warm_steps`, 0 of 0 where none are), so that a checkpoint has them;
`follow` puts the hooks on again after `load_state_dict` into a new optimizer. Rules of `tnc.optim`
need no hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tnc.optim.forms import form_of
from tnc.optim.loading import mended

SHARE, LEFT, STEPS = "decay_share", "warm_left", "warm_steps"
_MARK = "_tnc_following"


def follow(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let an optimizer keep the decay and the warming up that its cores' state asks for.

    Call it after loading the state of a bound optimizer into a new one; `tnc.bind` does it itself.
    More calls change nothing. Returns the optimizer.
    """
    for part in getattr(optimizer, "parts", (optimizer,)):
        if not hasattr(part, _MARK) and not getattr(part, "follows", False):
            setattr(part, _MARK, _Following(part))
    return optimizer


def decay(group: dict[str, Any], state: dict[str, Any]) -> float:
    """Return the factor that decoupled weight decay puts on a parameter in one step."""
    whole = 1 - float(group["lr"]) * float(group.get("weight_decay", 0.0))
    return float(whole ** state.get(SHARE, 1.0)) if whole > 0 else whole


class _Following:
    """Hooks before and after an optimizer's step; it holds nothing between the two but copies."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._before: list[tuple[nn.Parameter, dict[str, Any], Tensor]] = []
        optimizer.register_step_pre_hook(self._open)
        optimizer.register_step_post_hook(self._close)
        optimizer.register_load_state_dict_pre_hook(lambda optimizer, state: mended(state))

    def _open(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Prepare the cores; where there is a closure, when it has made the gradients."""
        self._before = []
        rest, kwargs = list(args[1:]), dict(kwargs)
        closure = rest[0] if rest else kwargs.get("closure")
        if closure is None:
            self._prepare(optimizer)
            return None

        asked = False

        def first() -> Any:
            nonlocal asked
            loss = closure()
            if not asked:
                asked = True
                self._prepare(optimizer)
            return loss

        if rest:
            return (args[0], first, *rest[1:]), kwargs
        return args, kwargs | {"closure": first}

    @torch.no_grad()
    def _prepare(self, optimizer: torch.optim.Optimizer) -> None:
        overflow = getattr(optimizer, "found_inf", None)  # a gradient scaler's, of a fused step
        if overflow is not None and float(overflow) > 0:
            return
        for group, core, state in _cores(optimizer):
            if state.get(LEFT):
                self._before.append((core, state, core.detach().clone()))
            own = form_of(optimizer, group).decoupled(group) and float(
                group.get("weight_decay", 0.0)
            )
            if own and state.get(SHARE, 1.0) != 1.0:
                whole = 1 - float(group["lr"]) * float(group["weight_decay"])
                if whole > 0:
                    core.mul_(decay(group, state) / whole)

    @torch.no_grad()
    def _close(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for core, state, before in self._before:
            warmed(core, before, state)
        self._before = []


def warmed(core: Tensor, before: Tensor, state: dict[str, Any]) -> None:
    """Shorten the step that a core just took, in place, and count it."""
    left, total = state[LEFT], state[STEPS]
    core.copy_(torch.lerp(before, core, (total - left + 1) / (total + 1)))
    state[LEFT] = left - 1
    if left == 1:
        state[STEPS] = 0


def whole(state: dict[str, Any]) -> dict[str, Any]:
    """Return a core's state with both numbers of warming up, which distributed checkpoints expect.

    They load what is there already: a slot of some cores at some times is in none of them.
    """
    return {LEFT: 0, STEPS: 0} | state if state else state


def _cores(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[dict[str, Any], nn.Parameter, dict[str, Any]]]:
    for group in optimizer.param_groups:
        for core in group["params"]:
            state = optimizer.state.get(core)
            if state and core.grad is not None and (SHARE in state or state.get(LEFT)):
                yield group, core, state
