"""Memory of every optimizer rule on MiniLM's linear layers: its state, by formula, beside AdamW's.

A rule takes three steps on the weights and biases of the six linear layers of the encoder's first
layer (the other layers have the same shapes), or on the weights alone where it refuses vectors;
rules of factors take pairs of rank 128. Gradients are random, but real ones where a rule reads its
model. "peak" is the most that the third step held at once beyond what was there before it, by
torch.profiler, beside the same of torch.optim.AdamW(foreach=True). A step that refreshes a
projection, every 200 or so, may hold more: the third is none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.optimizers import (
    Layers,
    Trial,
    copies,
    give,
    held_bytes,
    layers_of_minilm,
    pool_of,
    said_bytes,
    trial,
)
from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.optim.rule import rules

NAME = "optimizer-memory"
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}

STEPS = 3
MIB = 2**20


def run(arguments: Arguments) -> Outcome:
    """Measure every rule; `--quick` leaves out the peak. Goal: every rule's formula is right."""
    torch.set_num_threads(1)
    layers = layers_of_minilm(1)
    rows, goals, figures = [], [], {}
    peaks: dict[int, int] = {}
    for name in rules.all():
        tried, peak = stepped(name, layers, arguments.quick)
        held, said, takes = held_bytes(tried.rule), said_bytes(tried), tried.takes
        entries = sum(p.numel() for p in tried.parameters)
        if entries not in peaks:
            peaks[entries] = peak_of_adamw(tried.parameters)
        adamw = 2 * 4 * entries
        goals.append(Goal(f"bytes of {name}'s state off its formula", abs(held - said), 0))
        rows.append(
            (name, takes, held / MIB, said / MIB, held / adamw, peak / MIB, peak / peaks[entries])
        )
        figures[name] = {
            "takes": takes,
            "state bytes": held,
            "bytes by formula": said,
            "bytes of AdamW's state": adamw,
            "state over AdamW": held / adamw,
            "peak of a step, bytes": peak,
            "peak of AdamW's step, bytes": peaks[entries],
        }
    columns = ("rule", "takes", "state MiB", "by formula", "over AdamW", "peak MiB", "over AdamW's")
    return Outcome((table(columns, rows),), tuple(goals), figures)


def stepped(name: str, layers: Layers, quick: bool) -> tuple[Trial, float]:
    """Return a rule after three steps, and the peak of the third, in bytes; NaN where left out."""
    tried, peak = trial(name, layers), float("nan")
    for number in range(STEPS):
        tried.prepare(number)
        if number < STEPS - 1 or quick:
            tried.step()
        else:
            peak = peak_in(tried.step)
        tried.estimate()
    return tried, peak


def peak_of_adamw(parameters: tuple[Tensor, ...]) -> int:
    """Return the peak of AdamW's third step, in bytes."""
    own = copies(parameters)
    optimizer = torch.optim.AdamW(own, foreach=True)
    give(own, pool_of(own)[0])
    for _ in range(STEPS - 1):
        optimizer.step()
    return max(1, peak_in(optimizer.step))


def peak_in(call: Callable[[], object]) -> int:
    """Return the most bytes of tensors that a call held at once, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as made:
        call()
    found = made.profiler.kineto_results.events()
    memory = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    held = peak = 0
    for _, change in memory:
        held += change
        peak = max(peak, held)
    return peak
