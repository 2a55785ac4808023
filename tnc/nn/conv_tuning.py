"""Convolutions chosen by timing: the short list of ways, timed in turns, kept on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from tnc.derive.chain import is_chain, stages_in
from tnc.derive.merge import hangs_together, merged
from tnc.errors import KernelError
from tnc.kernels.applied import DTYPES, measures
from tnc.kernels.device import CPU
from tnc.kernels.remembered import remembered
from tnc.kernels.turns import Run, Turns, clock, fastest
from tnc.net import Structure
from tnc.nn.conv import Options
from tnc.nn.conv_choice import Asked, Choice, ConvTerm, ranked, varied
from tnc.nn.conv_stage import AnyLine, Line, RebuiltLine, laid_last, line

TURNS = Turns(seconds=0.006)
FINALISTS = 6


@dataclass(frozen=True)
class ConvTask:
    """What is to be chosen for: a convolution, its inputs, dtype and threads.

    Where weights are not kept, forward and backward are chosen together.
    """

    structure: Structure
    options: Options
    terms: tuple[ConvTerm, ...]
    asked: Asked
    dtype: str
    threads: int

    @property
    def training(self) -> bool:
        """Whether forward and backward are timed together."""
        return not self.asked.keeps

    @cached_property
    def key(self) -> list[Any]:
        """What tells this task from all others, beside dtype and threads, as plain data."""
        return ["conv", str(self.structure), asdict(self.options), self.asked._asdict()]


def choices(task: ConvTask) -> tuple[Choice, ...]:
    """Return the ways to do a task, fastest first, by the tuning that is in force."""
    if measures() and task.dtype in DTYPES.values():
        return measured(task)
    return ranked(task.options, task.terms, task.asked)


@lru_cache(maxsize=1024)
def measured(task: ConvTask) -> tuple[Choice, ...]:
    """Return the ways to do a task as timed here, fastest first; kept on disk per machine."""
    return remembered(
        (task.dtype, task.threads, CPU),
        task.key,
        lambda: timed(task, contenders(task)),
        (choice_to, lambda data: choice_from(data, task)),
    )


def contenders(task: ConvTask) -> list[Choice]:
    """Return the ways that are predicted to be fast, with all formats of their weights."""
    short = ranked(task.options, task.terms, task.asked)
    every = [each for one in short for each in varied(task.options, one, task.asked)]
    return list(dict.fromkeys(every))


def timed(task: ConvTask, ways: list[Choice]) -> tuple[Choice, ...]:
    """Time ways beside each other, in turns; those that are far behind at first sit out."""
    runs = [_runner(task, way) for way in ways]
    with torch.set_grad_enabled(task.training):
        seconds = fastest(runs, clock(task.threads), TURNS, FINALISTS)
    found = [replace(ways[place], measured=own) for place, own in seconds.items()]
    return tuple(sorted(found, key=lambda choice: choice.measured))


def _runner(task: ConvTask, choice: Choice) -> Run:
    made, dtype = torch.Generator().manual_seed(0), getattr(torch, task.dtype)
    structure, asked = task.structure, task.asked
    cores = {
        name: torch.randn(shape, generator=made).to(dtype).requires_grad_(task.training)
        for name, shape in structure.shapes.items()
    }
    x = torch.randn(asked.shape, generator=made).to(dtype)
    x = laid_last(x) if asked.last else x
    if not task.training:
        with torch.no_grad():
            weights = choice.laid_out(cores, asked.shape)
        return lambda: choice.run(weights, None, x)
    x.requires_grad_()
    wanted = [x, *cores.values()]

    def run() -> None:
        y = choice.run(choice.weights(cores), None, x)
        torch.autograd.grad(y, wanted, torch.ones_like(y))

    return run


def choice_to(choice: Choice) -> dict[str, Any]:
    """Write a choice as plain data; None is a line that rebuilds the dense weight."""
    lines = [
        {"merges": [list(group) for group in one.merges], "order": [s.core for s in one.stages]}
        if isinstance(one, Line)
        else None
        for one in choice.lines
    ]
    names = ("last", "between", "seconds", "measured")
    rest = {name: getattr(choice, name) for name in names}
    return {"lines": lines, "packed": [list(own) for own in choice.packed], **rest}


def choice_from(data: Mapping[str, Any], task: ConvTask) -> Choice:
    """Read what `choice_to` wrote. Raises KernelError for what is no way to do the task."""
    if len(data["lines"]) != len(task.terms):
        raise KernelError(f"{len(data['lines'])} lines for {len(task.terms)} networks")
    lines = tuple(_line(one, task, term) for one, term in zip(data["lines"], task.terms))
    packed = tuple(map(tuple, data["packed"]))
    if [len(own) for own in packed] != [len(one.stages) for one in lines]:
        raise KernelError("not every stage says whether its weight is packed")
    return Choice(lines, packed, data["last"], data["between"], data["seconds"], data["measured"])


def _line(data: Mapping[str, Any] | None, task: ConvTask, term: ConvTerm) -> AnyLine:
    if data is None:
        return RebuiltLine.of(term.rebuild, task.options)
    if term.whole is None:
        raise KernelError("stages for a network that has none")
    network = term.whole.network
    groups = tuple(map(tuple, data["merges"]))
    names = sorted(name for group in groups for name in group)
    known = names == sorted(core.name for core in network.equation.cores)
    if not known or not all(hangs_together(tuple(map(network.equation.core, g))) for g in groups):
        raise KernelError(f"{data['merges']} are not the cores of {network}")
    fewer = merged(network, groups)
    order = tuple(data["order"])
    if sorted(order) != sorted(group[0] for group in groups) or not is_chain(fewer.network):
        raise KernelError(f"{data['order']} is no order of the cores {data['merges']}")
    return line(task.options, term.whole, fewer, stages_in(fewer.network, order))
