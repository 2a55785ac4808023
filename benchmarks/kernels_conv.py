"""Structured convolutions against tensorly-torch and dense, forward and with all gradients.

The contenders hold the same numbers and must first equal the rebuilt weight's convolution. Inputs
lie in memory with channels first, as images come, and with channels last, as the pass
`channels-last` leaves them. tensorly-torch is held to the best of its implementations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import exp, log
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.conv_contenders import Cell, contenders, layer_of
from benchmarks.kernels import running
from benchmarks.kernels.saving import saved_bytes
from benchmarks.kernels.timing import Side, interleaved, median_ratio, probe, typical
from benchmarks.outcome import Arguments, Goal, Outcome, Table, table
from tnc.kernels.turns import clock

NAME = "kernels-conv"
ENVIRONMENT = running.MALLOC

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
"""Channels and edge of the image: the four stages of a ResNet."""
BATCHES = (1, 16)
PARTS = (2, 4)
"""Ranks, as parts of the channels; CP gets twice as many."""
STRUCTURES = ("tucker", "cp", "tensor-train", "low-rank")
FORMATS = {"first": torch.contiguous_format, "last": torch.channels_last}
LIMIT = 1e-4
GOAL = 1.5


@dataclass(frozen=True)
class Row:
    """Hold one cell: seconds by side, ratios of a rival's to ours, bytes saved for the backward."""

    cell: Cell
    train: bool
    seconds: Mapping[str, float]
    ratios: Mapping[str, float]
    saved: Mapping[str, int]


def run(arguments: Arguments) -> Outcome:
    """Time every cell forward (held to the goals) and with all gradients (reported)."""
    torch.set_num_threads(arguments.threads)
    rows = []
    chosen = list(_cells(arguments))
    for number, cell in enumerate(chosen, 1):
        for train in (False, True):
            row = _measured(cell, train, arguments.threads)
            rows.append(row)
            ratios = ", ".join(f"{name} {value:.2f}" for name, value in row.ratios.items())
            line = f"{number}/{len(chosen)} {cell.name}{' train' * train}: {ratios}"
            print(line, file=sys.stderr, flush=True)
    tables = (*(_every(rows, train) for train in (False, True)), _means(rows))
    figures = {
        "rows": [
            {**asdict(row), "cell": row.cell.name, "flop_ratio": row.cell.flop_ratio}
            for row in rows
        ],
        "threads": arguments.threads,
    }
    return Outcome(tables, tuple(_goals(rows)), figures)


def _cells(arguments: Arguments) -> Iterator[Cell]:
    shapes = SHAPES[::3] if arguments.quick else SHAPES
    for channels, edge in shapes:
        for batch in BATCHES[:1] if arguments.quick else BATCHES:
            for family in STRUCTURES:
                for part in PARTS[:1] if arguments.quick else PARTS:
                    cell = Cell(channels, edge, batch, family, part)
                    words = (arguments.only or "").split()
                    if all(any(p in cell.name for p in word.split(",")) for word in words):
                        yield cell


def _goals(rows: list[Row]) -> Iterator[Goal]:
    for against in ("tensorly best", "tensorly first"):
        ratios = [row.ratios[against] for row in rows if against in row.ratios and not row.train]
        if ratios:
            name = against.replace(" ", "-")
            yield Goal(f"mean-forward-{name}", _mean(ratios), GOAL, "at least")
            yield Goal(f"least-forward-{name}", min(ratios), 1.0, "at least")


def _measured(cell: Cell, train: bool, threads: int) -> Row:
    now = clock(threads)
    generator = torch.Generator().manual_seed(0)
    size = (cell.batch, cell.channels, cell.edge, cell.edge)
    x, seed = (torch.randn(size, generator=generator) for _ in range(2))
    layer = layer_of(cell, None)
    cores = {name: core.detach().clone() for name, core in layer.cores.items()}
    weight = layer.weight
    output = functional.conv2d(x, weight, None, 1, 1)
    names = list(cores)
    found = torch.autograd.grad(output, [*(layer.cores[n] for n in names), weight], seed)
    oracle = dict(zip((*names, "weight"), found))
    (x_gradient,) = torch.autograd.grad(
        functional.conv2d(held := x.clone().requires_grad_(), weight.detach(), None, 1, 1),
        held,
        seed,
    )
    sides, saved = [], {}
    with torch.set_grad_enabled(train):
        for kind, make in contenders(cell, cores, weight.detach()):
            for form, memory in FORMATS.items():
                one = make()
                inputs = [t.to(memory_format=memory) for t in (x, seed)]
                if isinstance(one.function, nn.Conv2d):
                    one.function.to(memory_format=memory)
                call, name = one.call(*inputs, train), f"{kind} {form}"
                wanted = [output.detach()]
                if train:
                    wanted += [x_gradient, *one.gradients(oracle)]
                    saved[name] = saved_bytes(one.function, inputs[0], one.parameters)
                _check(f"{cell.name}: {name}", call(), wanted, train)
                sides.append(Side(name, call))
        guesses = [probe(side, now) for side in sides]
        times = interleaved(sides, guesses, now)
    seconds = {side.name: typical(times, side.name) for side in sides}
    ratios = {}
    for rival in ("tensorly", "dense"):
        for form in ("first", "best"):
            own = [n for n in seconds if n.startswith(rival) and (form == "best" or form in n)]
            if own:
                best = min(own, key=lambda name: seconds[name])
                mine = f"ours {'last' if form == 'best' else form}"
                ratios[f"{rival} {form}"] = median_ratio(times, best, mine)
    return Row(cell, train, seconds, ratios, saved)


def _check(name: str, got: Any, wanted: list[Tensor], train: bool) -> None:
    values = [got[0], *got[1]] if train else [got]
    for place, (value, right) in enumerate(zip(values, wanted, strict=True)):
        error = float((value.detach() - right).norm() / right.norm())
        if value.shape != right.shape or not error <= LIMIT:
            raise SystemExit(f"{name}: result {place} is wrong, relative error {error:.2g}")


def _mean(values: list[float]) -> float:
    return exp(fmean(map(log, values))) if values else float("nan")


def _every(rows: list[Row], train: bool) -> Table:
    names = ("tensorly best", "tensorly first", "dense best", "dense first")
    columns = (f"cell{', all gradients' * train}", "fewer flops", "ours first ms", "ours last ms")
    lines = []
    for row in rows:
        if row.train == train:
            ratios = [f"{row.ratios[n]:.2f}" if n in row.ratios else "-" for n in names]
            own = [1e3 * row.seconds[f"ours {form}"] for form in FORMATS]
            lines.append([row.cell.name, row.cell.flop_ratio, *own, *ratios])
    return table((*columns, *(f"x {name}" for name in names)), lines)


def _means(rows: list[Row]) -> Table:
    lines: list[list[object]] = []
    for train in (False, True):
        for name in ("tensorly best", "tensorly first", "dense best", "dense first"):
            cells = [r for r in rows if r.train == train and name in r.ratios]
            by = [
                [r.ratios[name] for r in cells if r.cell.family == family] for family in STRUCTURES
            ]
            means = [f"{_mean(values):.2f}" for values in by]
            ratios = [r.ratios[name] for r in cells]
            least = f"{min(ratios):.2f}" if ratios else "-"
            lines.append([name + ", all gradients" * train, *means, f"{_mean(ratios):.2f}", least])
        if train:
            lines += [_saved(rows)]
    return table(("geometric mean of x", *STRUCTURES, "all", "least"), lines)


def _saved(rows: list[Row]) -> list[object]:
    """Print the bytes saved by tensorly-torch's factorized layer by those that ours saves."""
    line: list[object] = ["bytes saved, tensorly factorized by ours"]
    every = []
    for family in STRUCTURES:
        own = [
            row.saved["tensorly factorized first"] / max(row.saved["ours last"], 1)
            for row in rows
            if row.train and row.cell.family == family and "tensorly factorized first" in row.saved
        ]
        every += own
        line.append(f"{_mean(own):.2f}")
    return [*line, f"{_mean(every):.2f}", f"{min(every):.2f}" if every else "-"]
