"""Chains as Triton kernels, among what is timed on CUDA: without timing they are not considered.

Their prices are not known: what is predicted of them is the least that the device allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from tnc.derive.dense import ROWS
from tnc.kernels.chain import chain_of
from tnc.kernels.choose import Choice, Task, choose
from tnc.kernels.costs import Costs
from tnc.kernels.device import CPU, CUDA, TF32
from tnc.kernels.machine import current
from tnc.kernels.program import Program, extent, product_flops
from tnc.kernels.training import Runs
from tnc.kernels.way import Way

DTYPES = ("float32", "bfloat16", "float16")
BLOCKS = (16, 64, 128)
"""Rows of a program."""
PROGRAMS = 2
"""As many chains are compiled and timed, each with every block of rows: a second or so for one."""


def fused(task: Task, chosen: Sequence[Choice]) -> list[Choice]:
    """Return the Triton kernels that compute chains of what was chosen, and were checked here."""
    if refused(task):
        return []
    found = []
    for program in chains(chosen):
        choice = next(choice for choice in chosen if choice.program == program)
        back = replace(choice.way.back, kept=())
        found += [
            Choice(program, Way(rows, emitter="triton", back=back), least(task, choice))
            for rows in blocks(task)
            if not fault(task, program, rows)
        ]
    return found


def refused(task: Task) -> str:
    """Say why a task takes no Triton kernels; empty where it may."""
    from tnc.kernels import triton_run

    if task.device == CPU:
        return "Triton kernels are for CUDA"
    if task.dtype not in DTYPES:
        return f"no Triton kernels for {task.dtype}"
    if task.dtype == "float32" and task.device != TF32:
        return "for float32 that may not be rounded to tf32 Triton has no matrix units"
    return triton_run.refused(task.device)


def notes(task: Task, choices: Sequence[Choice]) -> tuple[str, ...]:
    """Say what became of Triton kernels for a task on CUDA."""
    if task.device == CPU:
        return ()
    reason = refused(task)
    if reason:
        return (f"no Triton kernel: {reason}",)
    if not any(choice.measured for choice in choices):
        return ("no Triton kernel: they take part where kernels are timed (tune: measure)",)
    chosen = choose(task)
    found = chains(chosen)
    if not found:
        return (f"no Triton kernel: {_why_none(chosen)}",)
    tried = [(rows, fault(task, program, rows)) for program in found for rows in blocks(task)]
    told = [f"no Triton kernel of {rows} rows a program: {said}" for rows, said in tried if said]
    timed = any(choice.way.emitter == "triton" for choice in choices)
    if not timed and not all(said for _, said in tried):
        told.append("Triton kernels were timed, and are far behind")
    return tuple(dict.fromkeys(told))


def chains(chosen: Sequence[Choice]) -> list[Program]:
    """Return the first programs that are chains."""
    found = []
    for program in dict.fromkeys(choice.program for choice in chosen):
        try:
            chain_of(program)
        except ValueError:
            continue
        found.append(program)
    return found[:PROGRAMS]


def _why_none(chosen: Sequence[Choice]) -> str:
    try:
        chain_of(chosen[0].program)
    except ValueError as error:
        return str(error)
    return ""


def blocks(task: Task) -> list[int]:
    """Return the rows of a program that are considered."""
    return [rows for rows in BLOCKS if rows <= max(BLOCKS[0], task.rows)]


def fault(task: Task, program: Program, rows: int) -> str:
    """Say why a kernel cannot be used here, by running it; empty where it can."""
    import torch

    from tnc.kernels import triton_run

    place = torch.device(CUDA, torch.cuda.current_device())
    return triton_run.wrong(program, rows, getattr(torch, task.dtype), place)


def least(task: Task, choice: Choice) -> float:
    """Return the least seconds: a call, and the products at the peak or the bytes at bandwidth.

    With gradients the backward counts as it was predicted of `choice`, by torch's products.
    """
    machine = current(task.dtype, task.threads, task.device)
    program, costs = choice.program, Costs(machine)
    size = dict(program.sizes) | {ROWS: task.rows}
    flops = sum(product_flops(step, size) for step in program.products)
    ends = task.rows * (extent(program.inputs, size) + prod(task.network.signature.outputs))
    operands = sum(extent(step.right.layout, size) for step in program.products)
    moved = costs.itemsize * (ends + operands)
    (name,) = machine.backends
    library = machine.libraries[name]
    work = max(flops / library.peak, moved / machine.bandwidth(moved))
    forward = library.products["mm"].overhead + work
    if not task.training:
        return forward
    by_torch = Runs(program, task.rows, costs).forward(choice.way.tile)
    return forward + max(0.0, choice.seconds - by_torch)
