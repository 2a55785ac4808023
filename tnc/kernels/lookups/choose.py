"""Choose how rows are looked up: merges, orders, libraries, loops; by price or by timing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from tnc.derive.dense import ROWS
from tnc.kernels.applied import measures
from tnc.kernels.device import CPU, DEFAULT
from tnc.kernels.emitters.numba_source import printed
from tnc.kernels.lookups.check import require
from tnc.kernels.lookups.loops import nests
from tnc.kernels.lookups.program import LookUp, lays, lookups
from tnc.kernels.lookups.source import emit, function
from tnc.kernels.loops.nest import Move, Picked, cycles
from tnc.kernels.loops.rates import Rates, known, lanes, made, stamp
from tnc.kernels.machine import Machine, current
from tnc.kernels.operands import keep, lay
from tnc.kernels.program import Copy, dimensions, extent
from tnc.kernels.program import made as legs_made
from tnc.kernels.remembered import remembered
from tnc.kernels.turns import Run, Turns, clock, fastest
from tnc.net import Network

LOOPED = 64
"""Loops are considered for up to so many numbers."""
MOVE = 6
"""Cycles to copy an item in another order."""
SHORTLIST, FINALISTS = 6, 6
TURNS = Turns(seconds=0.003)
GATHER = 4
"""Lines of Python that a gather costs beside its memory; one of integer arithmetic costs half."""
BACK = 3.0
"""What forward and backward cost by the forward alone, where training."""
ITEM = {"float32": 4, "float64": 8, "bfloat16": 2}


@dataclass(frozen=True)
class LookUpTask:
    """What is to be chosen for: a network, how many numbers, dtype, threads, gradients or not."""

    network: Network
    rows: int
    dtype: str
    threads: int
    training: bool


@dataclass(frozen=True)
class LookUpChoice:
    """A program, the library of every product (empty: torch's own), or loops; its seconds."""

    program: LookUp
    backends: tuple[str, ...] = ()
    looped: bool = False
    seconds: float = 0.0
    measured: float = 0.0

    @cached_property
    def forward(self) -> Callable[..., Tensor]:
        """`forward(x, *operands)` of row numbers `x[n]`."""
        return function(emit(self.program, self.backends))

    def source(self, rows: int) -> str:
        """Return the source that runs; of loops, their meaning for so many numbers."""
        found = nests(self.program, rows) if self.looped else None
        if found is None:
            return emit(self.program, self.backends)
        return printed(found, [table.operand.name for table in self.program.tables], rows)


def choices(task: LookUpTask) -> tuple[LookUpChoice, ...]:
    """Return the ways to look rows up, fastest first, by the tuning in force."""
    return measured(task) if measures() else ranked(task)


@lru_cache(maxsize=1024)
def ranked(task: LookUpTask) -> tuple[LookUpChoice, ...]:
    """Return the ways that are predicted to be the fastest."""
    return _short(task, known(task.dtype) if _may_loop(task) else None)


def _may_loop(task: LookUpTask) -> bool:
    return not task.training and task.threads == 1 and task.rows <= LOOPED


def _short(task: LookUpTask, rates: Rates | None) -> tuple[LookUpChoice, ...]:
    machine = current(task.dtype, task.threads)
    found = []
    for program in dict.fromkeys(lookups(task.network)):
        found.append(_priced(task, machine, program))
        loops = nests(program, task.rows) if rates is not None else None
        if rates is not None and loops is not None:
            seconds = rates.call + rates.cycle * _cycles(loops.steps, task.dtype)
            found.append(LookUpChoice(program, looped=True, seconds=seconds))
    found.sort(key=lambda choice: choice.seconds)
    short = found[:SHORTLIST]
    for choice in short:
        require(task.network, choice.program)
    return tuple(short)


def _cycles(steps: Sequence[Any], dtype: str) -> float:
    total = 0.0
    for step in steps:
        if isinstance(step, Picked):
            total += step.rows * (20 * len(step.runs) + 2 * step.items)
        elif isinstance(step, Move):
            count = 1
            for each, _, _ in step.loops:
                count *= each
            total += MOVE * count
        else:
            total += cycles(step, lanes(dtype))
    return total


def _priced(task: LookUpTask, machine: Machine, program: LookUp) -> LookUpChoice:
    size = dict(program.sizes) | {ROWS: task.rows}
    item, seconds = ITEM[task.dtype], 0.0
    for table in program.tables:
        held = item * extent(table.operand.layout, size)
        if table.picked:
            moved = item * task.rows * extent(table.rest, size)
            seconds += machine.statement * (GATHER + len(program.runs(table)))
            seconds += 2 * moved / machine.bandwidth(held + moved) + machine.fresh(moved)
        if task.training:
            seconds += 2 * held / machine.bandwidth(held)
            if len(table.operand.cores) > 1:
                seconds += 10 * machine.statement + 3 * held / machine.bandwidth(held)
    backends = []
    for step in program.steps:
        if isinstance(step, Copy):
            seconds += machine.copy(item * extent(step.after, size), _run(step, size) * item)
            continue
        batch, m, n, k = dimensions(step, size)
        made = item * extent(legs_made(step), size)
        if not step.left.group("k"):
            each = machine.copy(made, made)
            backends.append(DEFAULT)
        else:
            each, best = min((machine.gemm(b, batch, m, n, k), b) for b in machine.backends)
            backends.append(best)
        seconds += (BACK if task.training else 1) * (each + 2 * machine.statement)
        seconds += machine.fresh(made)
    names = tuple(backends) if set(backends) - {DEFAULT} else ()
    return LookUpChoice(program, names, seconds=seconds)


def _run(step: Copy, size: Mapping[str, int]) -> int:
    """Return how many items stay together in a copy."""
    count = 1
    for one, other in zip(reversed(step.before), reversed(step.after)):
        if one != other:
            break
        count *= size[one]
    return count


@lru_cache(maxsize=1024)
def measured(task: LookUpTask) -> tuple[LookUpChoice, ...]:
    """Return the ways as timed here, fastest first; kept on disk per machine."""
    programs = {str(program): program for program in lookups(task.network)}
    if not programs:
        return ()

    def read(data: Mapping[str, Any]) -> LookUpChoice:
        return choice_from(data, task.network)

    key = ["look-up", str(task.network), task.rows, task.training, stamp()]
    return remembered((task.dtype, task.threads, CPU), key, lambda: _timed(task), (choice_to, read))


def _timed(task: LookUpTask) -> tuple[LookUpChoice, ...]:
    ways = _short(task, made(task.dtype) if _may_loop(task) else None)
    every = [*ways, *(replace(way, backends=()) for way in ways if way.backends)]
    runs = [_runner(task, way) for way in every]
    with torch.set_grad_enabled(task.training):
        seconds = fastest(runs, clock(task.threads), TURNS, FINALISTS)
    found = [replace(every[place], measured=own) for place, own in seconds.items()]
    return tuple(sorted(found, key=lambda choice: choice.measured))


def _runner(task: LookUpTask, choice: LookUpChoice) -> Run:
    generator, dtype = torch.Generator().manual_seed(0), getattr(torch, task.dtype)
    network = task.network
    cores = {
        core.name: torch.randn(network.shape(core), generator=generator)
        .to(dtype)
        .requires_grad_(task.training)
        for core in network.equation.cores
    }
    (most,) = network.signature.outputs
    x = torch.randint(most, (task.rows,), generator=generator)
    ways = lays(network, choice.program)
    if not task.training:
        with torch.no_grad():
            operands = [keep(how, cores) for how in ways]
        call = bind(choice, operands, task.rows)
        return lambda: call(x)
    wanted = list(cores.values())

    def run() -> None:
        y = choice.forward(x, *(lay(how, cores) for how in ways))
        torch.autograd.grad(y, wanted, torch.ones_like(y))

    return run


def bind(choice: LookUpChoice, operands: Sequence[Tensor], rows: int) -> Callable[[Tensor], Tensor]:
    """Return `x -> y` for so many numbers, which the caller has found to be rows of the table."""
    if choice.looped:
        from tnc.kernels.loops.table import bound

        names = [table.operand.name for table in choice.program.tables]
        given = {name: each.contiguous() for name, each in zip(names, operands)}
        width = extent(choice.program.inputs, dict(choice.program.sizes))
        found = bound(partial(nests, choice.program), given, None, (rows, 1, width))
        if found is not None:
            return found
    return lambda x: choice.forward(x, *operands)


def choice_to(choice: LookUpChoice) -> dict[str, Any]:
    """Write a choice as plain data."""
    return {
        "program": str(choice.program).splitlines(),
        "libraries": list(choice.backends),
        "looped": choice.looped,
        "seconds": choice.seconds,
        "measured": choice.measured,
    }


def choice_from(data: Mapping[str, Any], network: Network) -> LookUpChoice:
    """Read what `choice_to` wrote. Raises ValueError for no program of the network."""
    text = "\n".join(data["program"])
    for program in lookups(network):
        if str(program) == text:
            count = len(data["libraries"])
            if count in (0, len(program.products)):
                return LookUpChoice(
                    program,
                    tuple(data["libraries"]),
                    data["looped"],
                    data["seconds"],
                    data["measured"],
                )
    raise ValueError(f"no look-up of {network} is {text!r}")


def flops(choice: LookUpChoice, rows: int) -> int:
    """Return the FLOPs of looking up so many rows."""
    size = dict(choice.program.sizes) | {ROWS: rows}
    total = 0
    for step in choice.program.products:
        batch, m, n, k = dimensions(step, size)
        total += (2 if step.left.group("k") else 1) * batch * m * n * k
    return total
