"""Ways to train with a program: tiles of forward and backward, what is kept, what is recomputed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from tnc.derive.dense import INPUT, ROWS
from tnc.kernels.costs import Costs
from tnc.kernels.layouts import same_memory
from tnc.kernels.program import (
    Copy,
    Multiply,
    Program,
    Step,
    extent,
    made,
    read,
    recomputed,
    written,
)
from tnc.kernels.way import Back, Gradients

LOOP = 8
"""Lines of Python that a tile takes beside its products."""


@dataclass(frozen=True)
class Value:
    """A value that the forward could keep: its bytes, and the seconds to recompute it."""

    name: str
    bytes: int
    seconds: float


def values(program: Program, size: Mapping[str, int], costs: Costs) -> Iterator[Value]:
    """Yield what the backward needs beside the input and the operands, in the order it is made.

    A value that a plain view of another one is has that one's name. Each is recomputed from the
    one before, whether that is kept or not, so their seconds add up.
    """
    wanted = {step.left.value for step in program.products}
    names: dict[str, str] = {}
    seconds = 0.0
    for step in program.steps:
        result, source = written(step), read(step)
        view = isinstance(step, Copy) and same_memory(step.before, step.after, size)
        names[result] = names.get(source, source) if view else result
        seconds += costs.forward(step, size)
        if result in wanted and names[result] != INPUT:
            yield Value(names[result], costs.itemsize * extent(made(step), size), seconds)
            seconds = 0.0


def kept(found: Sequence[Value], most: float) -> Iterator[tuple[str, ...]]:
    """Yield growing sets of values to keep within so many bytes, in the order they are made.

    First come those that are the dearest to recompute for their bytes.
    """
    chosen: set[str] = set()
    left = most
    for value in sorted(found, key=lambda value: value.bytes / max(value.seconds, 1e-12)):
        if value.bytes <= left and value.seconds:
            chosen.add(value.name)
            left -= value.bytes
            yield tuple(each.name for each in found if each.name in chosen)


@dataclass(frozen=True)
class Runs:
    """Prices of one program for so many rows in all, by the number of rows at a time."""

    program: Program
    rows: int
    costs: Costs

    def size(self, tile: int) -> dict[str, int]:
        return dict(self.program.sizes) | {ROWS: tile or self.rows}

    def gradients(self, tile: int) -> tuple[Gradients, ...]:
        """Return how the gradients of the products are taken."""
        size = self.size(tile)
        return tuple(self.costs.gradients(step, size)[1] for step in self.program.products)

    def forward(self, tile: int) -> float:
        """Seconds of the forward."""
        size = self.size(tile)
        steps = self.program.steps
        seconds = sum([self.costs.forward(step, size) for step in steps])
        return self._tiled(tile, seconds) + self._fresh(tile, steps[:-1])

    def backward(self, tile: int, held: Collection[str] = ()) -> float:
        """Seconds of all gradients, with what is recomputed because it is not held."""
        size, costs = self.size(tile), self.costs
        names = [step.right.value for step in self.program.products]
        _, again = recomputed(self.program, names, held)
        seconds = sum([costs.forward(step, size) for step in again])
        for step in self.program.steps:
            if isinstance(step, Multiply):
                seconds += costs.gradients(step, size)[0]
            else:
                seconds += costs.turning(step.after, step.before, size)
        # gradients of values are as large as the values
        return self._tiled(tile, seconds) + self._fresh(tile, (*again, *self.program.steps[:-1]))

    def holding(self, tile: int, held: Sequence[Value]) -> float:
        """Seconds that keeping values costs: fresh memory, and in tiles no cache holds them."""
        bytes = sum(value.bytes for value in held)
        if not tile or not bytes:
            return 0.0
        machine = self.costs.machine
        return machine.fresh(bytes) + 2 * bytes / machine.bandwidth(bytes)

    def _tiled(self, tile: int, seconds: float) -> float:
        if not tile:
            return seconds
        return ceil(self.rows / tile) * (seconds + LOOP * self.costs.machine.statement)

    def _fresh(self, tile: int, steps: Sequence[Step]) -> float:
        """Seconds that results cost more because their memory is new; tiles use theirs again."""
        size, item = self.size(tile), self.costs.itemsize
        fresh = self.costs.machine.fresh
        return 0.0 if tile else sum([fresh(item * extent(made(step), size)) for step in steps])


def trained(
    program: Program, rows: int, tiles: Sequence[int], keep: float, costs: Costs
) -> Iterator[tuple[int, Back, float]]:
    """Yield ways to train: rows at a time forward, how the backward runs, seconds of both.

    Values are kept within `keep` times the bytes of the input.
    """
    runs = Runs(program, rows, costs)
    every = (0, *tiles)
    ahead = {tile: runs.forward(tile) for tile in every}
    gradients = {tile: runs.gradients(tile) for tile in every}
    for back in every:
        seconds = runs.backward(back)
        for tile in every:
            yield tile, Back(back, (), gradients[back]), ahead[tile] + seconds
    size = runs.size(0)
    found = list(values(program, size, costs))
    most = keep * costs.itemsize * extent((ROWS, *program.inputs), size)
    for names in kept(found, most):
        held = [value for value in found if value.name in names]
        for tile in every:
            seconds = ahead[tile] + runs.backward(tile, names) + runs.holding(tile, held)
            yield tile, Back(tile, names, gradients[tile]), seconds
