"""The function `forward` of a program."""

from __future__ import annotations

from collections.abc import Sequence

from tnc.derive.dense import INPUT, ROWS
from tnc.kernels.emitters.tiles import buffers, guarded, tile_function, tiles
from tnc.kernels.emitters.writer import Writer, indented
from tnc.kernels.program import Program, written
from tnc.kernels.way import Way


class Forward(Writer):
    """Lines of `forward`, which returns `kept` values after the output where there are some."""

    def __init__(self, program: Program, way: Way, bias: bool, kept: Sequence[str] = ()) -> None:
        super().__init__(program, way, kept=tuple(kept))
        self.bias = bias

    def text(self) -> str:
        """Write the function, and those that it calls."""
        self.start()
        outputs = self.extent(tuple(n for n in self.program.output if n != ROWS))
        wide = ("1" if self.way.single else "n", outputs)
        inputs = self.extent(self.program.inputs)
        self.shapes[INPUT] = (wide[0], inputs)
        rides = self.bias and self.program.takes_bias
        late = ["y.add_(bias)"] if self.bias and not rides else []
        arguments = ", ".join([*self.arguments, *(["bias"] if self.bias else [])])
        bias = "bias" if rides else ""
        returned = ", ".join(["return y", *self.kept])
        if not self.into:
            self.steps(self.program.steps, bias=bias)
            last = written(self.program.steps[-1])
            count = [] if self.way.single else ["n = x.shape[0]"]
            switched = [*self.lines, f"y = {self.view(last, wide)}", *late]
            return "\n".join([f"def forward(x, {arguments}):", indented([
                *count, f"{INPUT} = x", *guarded(switched), returned])])  # fmt: skip
        self.shapes["y"] = wide
        self.steps(self.program.steps, bias=bias, out="y")
        tile = tile_function("tile", [INPUT, "y", *self.kept, arguments], self)
        parts = ", ".join(["x[a:b]", "y[a:b]", *self.parts(self.kept), arguments, "*buffers"])
        body = [
            "n = x.shape[0]",
            f"y = x.new_empty(n, {outputs})",
            *(f"{name} = x.new_empty({self.width(name)} * n)" for name in self.kept),
            *guarded(tiles(self.tile, f"tile({parts})", "buffers")),
            *late,
            returned,
        ]
        return "\n\n".join(
            [buffers("buffers_of", self), tile, f"def forward(x, {arguments}):\n{indented(body)}"]
        )
