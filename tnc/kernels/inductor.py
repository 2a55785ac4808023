"""The plain program through `torch.compile`, among what is timed where that is asked for.

Compiling takes seconds, in every process anew, so it is never done unasked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from tnc.kernels.choose import Choice, Task
from tnc.kernels.execute import execute
from tnc.kernels.way import Way

EMITTER = "inductor"
_NAMES = {"einsum": torch.einsum, "linear": functional.linear, "matmul": torch.matmul}

Forward = Callable[..., Tensor]


@cache
def refused(device: str) -> str:
    """Say why `torch.compile` does not work on a torch device type here; empty where it does.

    A line is compiled once in a process to learn it (seconds, less where torch has it cached).
    """
    try:
        with torch.no_grad():
            torch.compile(_line, dynamic=False)(torch.ones(4, device=device))
    except Exception as error:  # whatever compilers that are missing or broken raise
        return reason_of(error)
    return ""


def _line(x: Tensor) -> Tensor:
    return 2 * x + 1


def reason_of(error: Exception) -> str:
    """Return the first line of what a compiler raised."""
    told = str(error).strip().splitlines()
    return f"{type(error).__name__}: {told[0][:200]}" if told else type(error).__name__


def proposed(task: Task, chosen: Sequence[Choice]) -> Choice:
    """Return the plain program as a choice: of cores that are not merged, where some such was
    chosen."""
    plain = (c for c in chosen if all(len(o.cores) == 1 for o in c.program.operands))
    best = next(plain, chosen[0])
    way = Way(single=task.rows == 1, emitter=EMITTER)
    return replace(best, way=way, measured=0.0)


@lru_cache(maxsize=256)
def compiled(source: str, single: bool) -> Forward:
    """Return the `forward` of a source, compiled when it is first called."""
    plain = execute(source, _NAMES)["forward"]
    made: Forward = torch.compile(plain, dynamic=not single)

    def forward(x: Tensor, *given: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not any(each.requires_grad for each in (x, *given)):
            with torch.no_grad():  # one compilation for both modes
                return made(x, *given)
        return made(x, *given)

    return forward


def notes(task: Task, choices: Sequence[Choice]) -> tuple[str, ...]:
    """Say what became of `torch.compile` for a task that asks for it."""
    if not task.compiled:
        return ()
    if not any(choice.measured for choice in choices):
        return ("torch.compile takes part where kernels are timed (tune: measure)",)
    for choice in choices:
        if choice.way.emitter == EMITTER:
            again = "and again in every process that uses it"
            return (f"torch.compile took {choice.compiling:.1f} s, {again}",)
    kind = task.device.split("-")[0]
    return (f"torch.compile takes no part: {refused(kind) or 'it failed on this program'}",)
