"""Predicted seconds of programs run as loops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tnc.kernels.costs import LONG, NEAR, TURNED, Costs
from tnc.kernels.layouts import same_memory
from tnc.kernels.loops.nest import Nest, cycles, moves, nest
from tnc.kernels.loops.rates import Rates, lanes
from tnc.kernels.program import Copy, Matrix, Multiply, Program, extent
from tnc.net import Axis, Network

FAR, AGAIN = 6 << 20, 8
"""Bytes of an operand from which reading pieces of rows, `LONG` bytes apart or more, costs so much
more: every piece lies on a page of its own, and nothing is fetched ahead."""
SCATTERED = 1.5
"""What reading memory in short pieces that lie apart costs more."""
PIECE = 128
_NONE = Rates(0.0, 0.0)


@dataclass
class LoopCosts(Costs):
    """Costs of loops, of the forward alone. Any stride costs the same but in the inner loop."""

    rates: Rates = _NONE

    def product(self, step: Multiply, size: Mapping[str, int]) -> float:
        """Seconds of a product: its cycles, or its operand's way from memory."""
        key = (
            step.result.roles, step.left.roles, step.right.roles,
            tuple((r, extent(g, size)) for m in (step.left, step.right)
                  for r, g in zip(m.roles, m.groups)),
        )  # fmt: skip
        if key not in self._known:
            held = self.itemsize * extent(step.right.layout, size)
            found = nest(step, size)
            needed = cycles(found, lanes(self.machine.dtype)) * self.rates.cycle
            read = held / self.machine.bandwidth(held) * (SCATTERED if _scattered(found) else 1)
            along = found.sum.vector if found.vector == step.right.value else found.sum.scalar
            apart = found.kind == "tile" and self.itemsize * along >= LONG
            if held >= FAR and apart and found.rows.count >= 4:
                read *= AGAIN
            touched = self.itemsize * (extent(step.left.layout, size)
                                       + extent(step.result.layout, size))  # fmt: skip
            if held + touched > NEAR:  # what the loops wait for
                needed += touched / self.machine.bandwidth(held + touched)
                self._known[key] = needed + read
            else:
                self._known[key] = max(needed, read)
        return self._known[key]

    def turned(self, step: Multiply, legs: Axis, size: Mapping[str, int]) -> Multiply:
        """Return the step with its operand laid so that the loops run best."""
        groups = dict(zip(step.right.roles, step.right.groups))
        orders = ("bkn", "bnk", "kbn", "nbk", "knb", "nkb") if "b" in groups else ("kn", "nk")
        found = [
            Multiply(step.result, step.left,
                     Matrix(step.right.value, tuple(groups[r] for r in roles), roles))
            for roles in orders
        ]  # fmt: skip
        best = min(found, key=lambda one: self.product(one, size))
        if not same_memory(step.right.layout, legs, size):
            return best
        gains = self.product(best, size) < TURNED * self.product(step, size)
        return best if gains else step

    def copy(self, step: Copy, size: Mapping[str, int]) -> float:
        """Seconds of a copy into another order; none where memory stays as it is."""
        if len(moves(step, size)) == 1:
            return 0.0
        return max(0.0, super().copy(step, size) - self.machine.copy(0, 0))

    def total(self, network: Network, program: Program, size: Mapping[str, int]) -> float:
        """Seconds of a call with all of its steps."""
        return self.rates.call + super().total(network, program, size)


def _scattered(found: Nest) -> bool:
    """Whether an operand's short rows are not read one after another."""
    width = found.columns.count
    if found.kind == "dot":
        return False
    return width < PIECE and found.sum.count > 1 and found.sum.vector != width
