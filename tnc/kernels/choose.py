"""Choose how a network is applied to a number of rows: a program, a tile, a backend a product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

from tnc.derive.dense import ROWS
from tnc.kernels.check import require
from tnc.kernels.costs import Costs
from tnc.kernels.device import CPU, CUDA, TF32, standard
from tnc.kernels.loops import copies as compiled_copies
from tnc.kernels.loops.costs import LoopCosts
from tnc.kernels.loops.nest import nests
from tnc.kernels.loops.rates import DTYPES, Rates, known
from tnc.kernels.machine import Machine, current
from tnc.kernels.program import Program, extent, made
from tnc.kernels.search import search
from tnc.kernels.training import Runs, trained
from tnc.kernels.way import Way
from tnc.net import Network

TILES = {CPU: (16, 32, 64, 128, 256), CUDA: (1024, 4096), TF32: (1024, 4096)}
TILED_FROM = {CPU: 256 << 10, CUDA: 16 << 20, TF32: 16 << 20}
"""Rows are taken in tiles only where some result is larger than so many bytes."""
LOOPED = (64, 32, 16)
"""Loops over memory take so many rows at a time, or all where they are less."""
LOOPS = 4
"""As many ways of them are considered."""
COMPARED, TURNED_ROWS = 1 << 20, 64
"""Copies are compared by one of so many bytes, and by that of a matrix with so many rows."""
VIEWS = 2
"""Views that a product of torch takes beside its call: they count against loops."""
SHORTLIST = 8
LARGEST = 1 << 14
DENSE_GAIN = 0.85
"""A kept dense weight must take at most this part of the time of the best other way."""
COMPILED_GAIN = 0.9
"""What is compiled for seconds in every process must take at most this part of it."""


@dataclass(frozen=True)
class Task:
    """What is to be chosen for: a network, rows, dtype, threads, with or without gradients."""

    network: Network
    rows: int
    dtype: str
    threads: int
    training: bool
    backend: str = ""
    """The one library that may multiply; empty where it is free."""
    device: str = CPU
    keep: float = 0.0
    """What training may keep beyond the input, as a part of the input's bytes."""
    compiled: bool = False
    """Whether `torch.compile` of the plain program takes part where kernels are timed."""


@dataclass(frozen=True)
class Choice:
    """A program, how it is run, its predicted seconds, and those measured (0: not measured).

    `compiling` are the seconds that a compiler took before the first call, where one was asked for.
    """

    program: Program
    way: Way
    seconds: float
    measured: float = 0.0
    compiling: float = 0.0


def bucket(rows: int) -> int:
    """Return the number of rows for which kernels of `rows` inputs are chosen: a power of two.

    >>> [bucket(n) for n in (1, 2, 3, 100, 10**9)]
    [1, 2, 4, 128, 16384]
    """
    return 1 if rows <= 1 else min(LARGEST, 1 << (rows - 1).bit_length())


@lru_cache(maxsize=4096)
def choose(task: Task) -> tuple[Choice, ...]:
    """Return the ways to do a task that are predicted to be the fastest, fastest first."""
    machine, copies = equipped(task)
    rates = known(task.dtype) if may_loop(task) else None
    found = ranked(task, machine, copies)
    if rates is None:
        return found
    view = VIEWS * machine.statement
    by_products = [replace(c, seconds=c.seconds + view * len(c.program.products)) for c in found]
    every = (*by_products, *looped(task, machine, rates))
    return tuple(sorted(every, key=lambda choice: handicapped(task, choice)))


def equipped(task: Task) -> tuple[Machine, str]:
    """Return the prices, and what copies into other orders: 'numba' where that is measured to win.

    Compiled copies take one thread.
    """
    machine = current(task.dtype, task.threads, task.device)
    own = compiled_copies.known(task.dtype) if task.device == CPU else None
    if own is None:
        return machine, "torch"
    other = replace(machine, copies=own)
    pairs = [
        (each.copy(COMPARED, 1), each.turn(COMPARED, TURNED_ROWS)) for each in (other, machine)
    ]
    wins = all(mine < theirs for mine, theirs in zip(*pairs, strict=True))
    return (other, "numba") if wins else (machine, "torch")


def may_loop(task: Task) -> bool:
    """Whether loops are considered: on one thread of the CPU, without gradients."""
    free = task.device == CPU and not (task.training or task.backend)
    return free and task.threads == 1 and task.dtype in DTYPES


def looped(task: Task, machine: Machine, rates: Rates) -> tuple[Choice, ...]:
    """Return the ways to do a task by loops over memory, those predicted to be fastest first.

    Raises KernelError as `ranked` does.
    """
    costs = LoopCosts(machine, rates=rates)
    most = min(task.rows, LOOPED[0])
    found = []
    for program in (found.program for found in search(task.network, most, costs)):
        if nests(program, most) is None:
            continue
        for tile in (most, *(tile for tile in LOOPED if tile < most)):
            size = dict(task.network.sizes) | {ROWS: tile}
            seconds = costs.total(task.network, program, size) - rates.call
            way = Way(tile if task.rows > 1 else 0, single=task.rows == 1, emitter="numba")
            found.append(Choice(program, way, rates.call + ceil(task.rows / tile) * seconds))
    chosen = sorted(found, key=lambda choice: handicapped(task, choice))[:LOOPS]
    for choice in chosen:
        require(task.network, choice.program)
    return tuple(chosen)


def keeps(task: Task) -> bool:
    """Whether operands are kept from call to call: on the CPU, where their cores are compared.

    On CUDA the host would have to wait for the device to know whether cores have changed.
    """
    return task.device == CPU and not task.training


def ranked(task: Task, machine: Machine, copies: str = "torch") -> tuple[Choice, ...]:
    """Rank programs and tiles by the costs of a machine; each program is checked.

    `copies` says what copies into other orders, at the prices of the machine.

    Raises KernelError for a program that does not compute the network: a fault of the search.
    """
    if task.backend:
        machine = replace(machine, backends=(task.backend,))
    costs = Costs(machine, training=task.training, cached=keeps(task))
    every = [costs, replace(costs, keeping=True)] if task.training and task.keep else [costs]
    programs = _searched(task, task.rows, every)
    size = dict(task.network.sizes) | {ROWS: task.rows}
    largest = max(costs.itemsize * extent(made(step), size)
                  for program in programs for step in program.steps)  # fmt: skip
    tiles = [tile for tile in TILES[task.device] if tile < task.rows]
    if largest <= TILED_FROM[task.device]:
        tiles = []
    if tiles:
        programs += _searched(task, tiles[len(tiles) // 2], every)
    found = [
        replace(choice, way=replace(choice.way, copies=copies))
        for program in dict.fromkeys(programs)
        for choice in ways(task, program, tiles, costs)
    ]
    found.sort(key=lambda choice: handicapped(task, choice))
    short = _spread(found)
    dense = [c for c in short[SHORTLIST:] if len(c.program.operands) == 1]
    chosen = (*short[:SHORTLIST], *dense[:1])
    for choice in chosen:
        require(task.network, choice.program)
    return chosen


def _searched(task: Task, rows: int, every: Sequence[Costs]) -> list[Program]:
    return [found.program for costs in every for found in search(task.network, rows, costs)]


def ways(task: Task, program: Program, tiles: Sequence[int], costs: Costs) -> Iterator[Choice]:
    """Yield how a program may be run, with prices."""
    ahead = costs.preparing(task.network, program)
    single = task.rows == 1
    backends = {tile: _backends(task, program, tile, costs) for tile in (0, *tiles)}
    if task.training:
        for tile, back, seconds in trained(program, task.rows, tiles, task.keep, costs):
            way = in_short(Way(tile, backends[tile], single, back=back), task.device)
            yield Choice(program, way, ahead + seconds)
        return
    for tile, names in backends.items():
        seconds = Runs(program, task.rows, costs).forward(tile)
        yield Choice(program, in_short(Way(tile, names, single), task.device), ahead + seconds)


def _backends(task: Task, program: Program, tile: int, costs: Costs) -> tuple[str, ...]:
    size = dict(program.sizes) | {ROWS: tile or task.rows}
    return tuple(costs.backend(step, size) for step in program.products)


def in_short(way: Way, device: str) -> Way:
    """Leave the libraries out where all are torch's standard: nothing is switched."""
    gradients = [name for each in way.back.gradients for name in (each.input, each.operand)]
    if {*way.backends, *gradients} - {standard(device)}:
        return way
    plain = tuple(replace(each, input="", operand="") for each in way.back.gradients)
    return replace(way, backends=(), back=replace(way.back, gradients=plain))


def by_one(way: Way, library: str, products: int, device: str) -> Way:
    """Return a way whose every product, and its gradients, one library multiplies."""
    gradients = tuple(replace(each, input=library, operand=library) for each in way.back.gradients)
    back = replace(way.back, gradients=gradients)
    return in_short(replace(way, backends=(library,) * products, back=back), device)


def handicapped(task: Task, choice: Choice) -> float:
    """Return the seconds that count: a dense weight kept for inference costs all of its memory,
    and what `torch.compile` makes has to be compiled."""
    seconds = choice.measured or choice.seconds
    if choice.way.emitter == "inductor":
        seconds /= COMPILED_GAIN
    dense = len(choice.program.operands) == 1 and _merges(choice.program)
    return seconds / DENSE_GAIN if dense and keeps(task) else seconds


def _merges(program: Program) -> bool:
    return any(len(operand.cores) > 1 for operand in program.operands)


def _spread(found: list[Choice]) -> list[Choice]:
    """Keep at most two tiles of one program, so that a short list has several programs."""
    seen: dict[Program, int] = {}
    kept = []
    for choice in found:
        seen[choice.program] = seen.get(choice.program, 0) + 1
        if seen[choice.program] <= 2:
            kept.append(choice)
    return kept
