"""Predicted seconds of the steps of a program, forward and backward, on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tnc.derive.contraction import Contraction
from tnc.kernels.device import CUBLAS
from tnc.kernels.layouts import halves, long_legs, same_memory
from tnc.kernels.machine import Machine
from tnc.kernels.program import (
    Copy,
    Matrix,
    Multiply,
    Program,
    Step,
    called,
    dimensions,
    extent,
    input_gradient,
    operand_gradient,
)
from tnc.kernels.sums import factors, flattened, summed
from tnc.kernels.way import Gradients
from tnc.net import Axis, Network

ITEMSIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
TURNED = 0.9
"""A core is held a second time, in another order, where that takes at most this part."""
TURNED_MKL, LONG_MKL = 0.5, 3.0
"""What MKL spends on matrices that lie otherwise, as a part of the time to copy them: on any, and
on an activation whose columns lie one after another, so many bytes apart or more:"""
LONG = 2048
NEAR = 1 << 20
"""Bytes of activations from which a product waits for memory beside computing. Products that wait
for nothing else were measured so."""
PIECE, MERGING = 16, 10
"""Bytes that stay together where a sum of two cores is brought in order, and lines of Python."""
EACH = 1
"""Lines of Python of one product of a sum, beside its call."""


@dataclass
class Costs:
    """Costs on one machine. With `training`, products cost their gradients and a recomputation.

    `cached` tells that merged cores are kept while weights do not change, so merging is free;
    `keeping` that the forward keeps all values, so that nothing is recomputed.
    """

    machine: Machine
    training: bool = False
    cached: bool = True
    keeping: bool = False
    _known: dict[object, float] = field(default_factory=dict, init=False)
    _gradients: dict[object, tuple[float, Gradients]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.itemsize = ITEMSIZE[self.machine.dtype]

    def product(self, step: Multiply, size: Mapping[str, int]) -> float:
        """Seconds of a product, with what its gradients cost where training."""
        key = self._key(step, size)
        if key not in self._known:
            self._known[key] = self._product(step, size)
        return self._known[key]

    def _key(self, step: Multiply, size: Mapping[str, int]) -> tuple[object, ...]:
        """Return what a product's costs depend on."""
        return (dimensions(step, size), step.result.roles, step.left.roles, step.right.roles)

    def total(self, network: Network, program: Program, size: Mapping[str, int]) -> float:
        """Seconds of all steps, without merging where merged operands are kept."""
        seconds = self.preparing(network, program)
        for step in program.steps:
            seconds += self.copy(step, size) if isinstance(step, Copy) else self.product(step, size)
        return seconds

    def preparing(self, network: Network, program: Program) -> float:
        """Seconds of making the operands of a program; nothing where they are kept."""
        pieces = [(o.name, o.cores, o.layout) for o in program.operands]
        seconds = self.merging(network, pieces)
        for operand in program.operands:
            if len(operand.cores) == 1:
                legs = network.equation.core(operand.cores[0]).indices
                if not same_memory(operand.layout, legs, network.size):
                    seconds += self.laying(legs, network.size)
        return seconds

    def turned(self, step: Multiply, legs: Axis, size: Mapping[str, int]) -> Multiply:
        """Return a step, its operand laid otherwise where that is worth it; its core has `legs`."""
        groups = dict(zip(step.right.roles, step.right.groups))
        batch = ("b",) if "b" in groups else ()
        roles = "".join((*batch, *_wanted(step, step.right)))
        if not self.cached or roles == step.right.roles:
            return step
        right = Matrix(step.right.value, tuple(groups[role] for role in roles), roles)
        other = Multiply(step.result, step.left, right)
        if not same_memory(step.right.layout, legs, size):
            return other
        return other if self.product(other, size) < TURNED * self.product(step, size) else step

    def backend(self, step: Multiply, size: Mapping[str, int]) -> str:
        """Return the backend that is predicted to be the fastest for a product."""
        return min(self.machine.backends, key=lambda name: self._call(step, size, name))

    def _product(self, step: Multiply, size: Mapping[str, int]) -> float:
        forward = self.call(step, size)
        if not self.training:
            return forward
        again = 0.0 if self.keeping else forward
        return forward + again + self.gradients(step, size)[0]

    def forward(self, step: Step, size: Mapping[str, int]) -> float:
        """Seconds of a step alone, without its gradients."""
        if isinstance(step, Copy):
            return self.turning(step.before, step.after, size)
        return self.call(step, size)

    def again(self, step: Step, size: Mapping[str, int]) -> float:
        """Seconds by which a step is cheaper where its result is not recomputed."""
        return self.forward(step, size) if self.training and not self.keeping else 0.0

    def gradients(self, step: Multiply, size: Mapping[str, int]) -> tuple[float, Gradients]:
        """Return the seconds of a product's two gradients, and how they are taken."""
        key = self._key(step, size)
        if key not in self._gradients:
            back = input_gradient(step)
            name = self.backend(back, size)
            moved = self.itemsize * extent(step.right.layout, size)
            ways = []
            for turned in (False, True):
                seconds, own, how = self.summing(operand_gradient(step, turned), size)
                # a parameter's gradient is brought into its order
                after = self.machine.copy(moved, PIECE) if turned else 0.0
                ways.append((seconds + after, Gradients(name, own, how, turned)))
            seconds, best = min(ways, key=lambda way: way[0])
            self._gradients[key] = self._call(back, size, name) + seconds, best
        return self._gradients[key]

    def call(self, step: Multiply, size: Mapping[str, int]) -> float:
        """Seconds of one product alone, on the best backend."""
        return min([self._call(step, size, name) for name in self.machine.backends])

    def _call(self, step: Multiply, size: Mapping[str, int], backend: str) -> float:
        batch, m, n, k = dimensions(step, size)
        lone = batch > 1 and "b" not in step.right.roles and "b" in step.result.roles
        if lone and next(r for r in step.result.roles if r != "b") not in step.right.roles:
            m, n = n, m
        seconds = self.machine.gemm(backend, batch, m, n, k, shared=lone)
        touched = self.itemsize * batch * (m * k + k * n + m * n)
        seconds = max(seconds, touched / self.machine.bandwidth(touched))
        active = self.itemsize * (extent(step.left.layout, size)
                                  + extent(step.result.layout, size))  # fmt: skip
        if active > NEAR and backend != CUBLAS:
            waited = active / self.machine.bandwidth(active)
            seconds += waited * max(0.0, 1.0 - waited / seconds)
        if backend == CUBLAS:  # it reads and writes batches by any strides
            return seconds
        apart = step.result.roles[0] != "b" and "b" in step.result.roles
        if batch > 1 and backend != "onednn" and apart and min(m, n) > 1:
            # torch takes them one by one
            seconds = batch * self.machine.gemm(backend, 1, m, n, k)
        reading = [self._reading(step, matrix, size, backend) for matrix in (step.left, step.right)]
        return seconds + sum(reading)

    def _reading(
        self, step: Multiply, matrix: Matrix, size: Mapping[str, int], backend: str
    ) -> float:
        """Seconds beyond those of matrices that lie one by one, rows after rows.

        oneDNN brings others into this order, MKL reads them slower. Of a batch that is turned and
        does not lie one by one, oneDNN copies an item at a time.
        """
        rows, columns = _wanted(step, matrix)
        batch = ("b",) if "b" in matrix.roles else ()
        wanted = tuple(name for role in (*batch, rows, columns) for name in matrix.group(role))
        if same_memory(matrix.layout, wanted, size):
            return 0.0
        moved = self.itemsize * extent(matrix.layout, size)
        turned = tuple(role for role in matrix.roles if role != "b") == (columns, rows)
        count = extent(matrix.group(rows), size)
        if backend == "onednn":
            long = min(count, extent(matrix.group(columns), size)) > 1
            apart = batch and matrix.roles[0] != "b" and turned and long
            return self.machine.copy(moved, self.itemsize if apart else moved)
        if turned and matrix is step.left:
            after = matrix.layout[len(matrix.groups[0]) :]
            if self.itemsize * extent(after, size) >= LONG:
                return LONG_MKL * self.machine.copy(moved, moved)
        return TURNED_MKL * self.machine.copy(moved, moved)

    def summing(self, back: Multiply, size: Mapping[str, int]) -> tuple[float, str, str]:
        """Return the seconds of an operand's gradient, its library, and how a batch is summed."""
        names = self.machine.backends
        if not summed(back):
            return min([(self._call(back, size, name), name, "") for name in names])
        pair, machine = factors(back), self.machine
        own = pair[0].group("b")
        batch, m = extent(own, size), extent(pair[0].group("m"), size)
        rows, columns = (extent(group, size) for group in back.result.groups)
        copied = sum(
            [
                self.turning(matrix.layout, [n for r in roles for n in matrix.group(r)], size)
                for matrix, roles in zip(pair, flattened(back, size))
            ]
        )
        whole = Matrix("", (own, *back.result.groups), "b" + back.result.roles)
        several = Multiply(whole, back.left, back.right)
        ways = []
        for name in names:
            one = machine.gemm(name, 1, rows, columns, m) + EACH * machine.statement
            long = machine.gemm(name, 1, rows, columns, batch * m)
            many = self._call(several, size, name) + self._moved(batch * rows * columns)
            ways += [(batch * one, name, "each"), (long + copied, name, "flat")]
            ways.append((many, name, "batch"))
        return min(ways)

    def _moved(self, entries: int) -> float:
        moved = self.itemsize * entries
        return self.machine.copy(moved, moved)

    def copy(self, step: Copy, size: Mapping[str, int]) -> float:
        """Seconds of a copy into another order, with what its gradient costs where training."""
        seconds = self.turning(step.before, step.after, size)
        if not self.training:
            return seconds
        again = 0.0 if self.keeping else seconds
        return seconds + again + self.turning(step.after, step.before, size)

    def turning(
        self, before: Sequence[str], after: Sequence[str], size: Mapping[str, int]
    ) -> float:
        """Seconds of one copy into another order; none where memory stays as it is."""
        before, after = long_legs(before, size), long_legs(after, size)
        if before == after:
            return 0.0
        moved, turned = self.itemsize * extent(before, size), halves(before, after)
        if turned is not None:
            return self.machine.turn(moved, min(extent(half, size) for half in turned))
        run = self.itemsize
        for a, b in zip(reversed(before), reversed(after)):
            if a != b:
                break
            run *= size[a]
        return self.machine.copy(moved, run)

    def laying(self, legs: Axis, size: Mapping[str, int]) -> float:
        """Seconds of writing a core in another order, and where training its gradient back."""
        if self.cached:
            return 0.0
        moved = self.itemsize * extent(legs, size)
        return (2 if self.training else 1) * self.machine.copy(moved, self.itemsize)

    def merging(
        self, network: Network, pieces: Sequence[tuple[str, tuple[str, ...], Axis]]
    ) -> float:
        """Seconds of making merged operands from their cores; nothing where they are kept."""
        if self.cached:
            return 0.0
        seconds = 0.0
        for _, cores, legs in pieces:
            if len(cores) > 1:
                merged = merge(network, cores, legs)
                summed = set().union(*merged.operands) - set(legs)
                flops = merged.order.flops / (0.5 * max(self.machine.peak.values()))
                moved = self.itemsize * extent(legs, network.size)
                run = PIECE if summed else moved
                once = flops + self.machine.copy(moved, run) + MERGING * self.machine.statement
                seconds += (1 + len(cores) if self.training else 1) * once
        return seconds


def _wanted(step: Multiply, matrix: Matrix) -> tuple[str, str]:
    """Return the roles of a factor's rows and columns in the call of a product."""
    rows, columns, summed = called(step.result.roles, step.left.roles)
    return (rows, summed) if rows in matrix.roles else (summed, columns)


def merge(network: Network, cores: Sequence[str], legs: Axis) -> Contraction:
    """Return the contraction of some cores to an operand with `legs`."""
    return Contraction(
        tuple(cores),
        tuple(network.equation.core(name).indices for name in cores),
        legs,
        network.sizes,
    )
