"""Choose by timing: the ways that are predicted to be fast, and those by one library alone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from tnc.kernels import inductor
from tnc.kernels.check import wrong
from tnc.kernels.choose import (
    Choice,
    Task,
    by_one,
    equipped,
    handicapped,
    looped,
    may_loop,
    ranked,
)
from tnc.kernels.codec import choice_from, choice_to
from tnc.kernels.compiled import Kernel
from tnc.kernels.device import CPU
from tnc.kernels.fused import fused, refused
from tnc.kernels.loops import copies as compiled_copies
from tnc.kernels.loops.rates import made, stamp
from tnc.kernels.machine import current
from tnc.kernels.operands import keep, lays
from tnc.kernels.ready import readied
from tnc.kernels.remembered import remembered
from tnc.kernels.timing import torch_device
from tnc.kernels.trainer import trained
from tnc.kernels.turns import Run, Turns, clock, fastest

TURNS = Turns(seconds=0.004)
FINALISTS = 5


@lru_cache(maxsize=4096)
def measured(task: Task) -> tuple[Choice, ...]:
    """Return the ways to do a task as timed here, fastest first; kept on disk per machine."""
    torch_device(task.device)
    return remembered(
        (task.dtype, task.threads, task.device),
        [stamp(), asdict(task)],
        lambda: timed(task, _contenders(task)),
        (choice_to, choice_from),
        lambda choice: not _faulty(task, choice),
    )


def _faulty(task: Task, choice: Choice) -> bool:
    """Whether a kept choice is no way to do the task here, whatever wrote it."""
    gone = ""
    if choice.way.emitter == "triton":
        gone = refused(task)
    elif choice.way.emitter == inductor.EMITTER:
        gone = inductor.refused(torch_device(task.device))
    return bool(gone or wrong(task.network, choice.program))


def _contenders(task: Task) -> list[Choice]:
    """Return the predicted short list, with every product by one library as alternatives."""
    found: list[Choice] = []
    backends = (task.backend,) if task.backend else _backends(task)
    if task.device == CPU:
        compiled_copies.made(task.dtype)
    machine, copies = equipped(task)
    chosen = ranked(task, machine, copies)
    rates = made(task.dtype) if may_loop(task) else None
    if rates is not None:
        found += looped(task, machine, rates)
    for choice in chosen:
        count = len(choice.program.products)
        ways = [choice.way]
        ways += [by_one(choice.way, name, count, task.device) for name in backends]
        found += [replace(choice, way=way) for way in dict.fromkeys(ways)]
    return [*found, *fused(task, chosen), *_by_compiler(task, chosen)]


def _by_compiler(task: Task, chosen: Sequence[Choice]) -> list[Choice]:
    """Return the plain program, compiled, where that was asked for and works."""
    if not task.compiled or inductor.refused(torch_device(task.device)):
        return []
    choice = inductor.proposed(task, chosen)
    started = time.perf_counter()
    try:
        with torch.no_grad():
            _runner(task, choice)()
    except Exception as error:  # whatever the compiler raises
        warnings.warn(
            f"torch.compile fails on {task.network}, so it takes no part: "
            f"{inductor.reason_of(error)}",
            stacklevel=2,
        )
        return []
    return [replace(choice, compiling=time.perf_counter() - started)]


def _backends(task: Task) -> tuple[str, ...]:
    return current(task.dtype, task.threads, task.device).backends


def timed(task: Task, choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Time ways beside each other, in turns; those that are far behind at first sit out."""
    runs = [_runner(task, choice) for choice in choices]
    compiled = {place for place, choice in enumerate(choices) if choice.compiling}
    now = clock(torch.get_num_threads(), task.device)
    with torch.no_grad():
        seconds = fastest(runs, now, TURNS, FINALISTS, 2, compiled)
    found = [replace(choices[place], measured=own) for place, own in seconds.items()]
    return tuple(sorted(found, key=lambda choice: handicapped(task, choice)))


def _runner(task: Task, choice: Choice) -> Run:
    dtype, device = getattr(torch, task.dtype), torch_device(task.device)
    made = torch.Generator().manual_seed(0)
    network = task.network

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=made).to(device, dtype)

    cores = {core.name: draw(*network.shape(core)) for core in network.equation.cores}
    x = draw(task.rows, prod(network.signature.inputs))
    if not task.training:
        if task.device != CPU:
            ready = readied(network, choice)
            return lambda: ready.run(cores, x, None)
        operands = [keep(how, cores) for how in lays(network, choice.program)]
        call = Kernel(choice).bind(operands, None, task.rows)
        return lambda: call(x)
    dy = draw(task.rows, prod(network.signature.outputs))
    trainer = readied(network, choice).trainer
    asked = [x.requires_grad_(), *(cores[name].requires_grad_() for name in trainer.names)]

    def run() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(trained(trainer, asked[1:], x, None), asked, dy)

    return run
