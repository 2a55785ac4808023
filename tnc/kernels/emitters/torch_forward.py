"""The function `forward` of a program."""

from __future__ import annotations

from tnc.derive.dense import INPUT, ROWS
from tnc.kernels.emitters.tiles import buffers, guarded, tile_function, tiles
from tnc.kernels.emitters.writer import Writer, indented
from tnc.kernels.program import Copy, Program
from tnc.kernels.way import Way


class Forward(Writer):
    def __init__(self, program: Program, way: Way, bias: bool) -> None:
        super().__init__(program, way)
        self.bias = bias

    def text(self) -> str:
        self.start()
        outputs = self.extent(tuple(n for n in self.program.output if n != ROWS))
        wide = ("1" if self.way.single else "n", outputs)
        inputs = self.extent(self.program.inputs)
        self.shapes[INPUT] = (wide[0], inputs)
        rides = self.bias and self.program.takes_bias
        late = ["y.add_(bias)"] if self.bias and not rides else []
        arguments = ", ".join([*self.arguments, *(["bias"] if self.bias else [])])
        bias = "bias" if rides else ""
        if not self.into:
            self.steps(len(self.program.steps), bias=bias)
            final = self.program.steps[-1]
            last = final.result if isinstance(final, Copy) else final.result.value
            count = [] if self.way.single else ["n = x.shape[0]"]
            switched = [*self.lines, f"y = {self.view(last, wide)}", *late]
            return "\n".join([f"def forward(x, {arguments}):", indented([
                *count, f"{INPUT} = x", *guarded(switched), "return y"])])  # fmt: skip
        self.shapes["y"] = wide
        self.steps(len(self.program.steps), bias=bias, out="y")
        tile = tile_function("tile", [INPUT, "y", arguments], self)
        body = [
            "n = x.shape[0]",
            f"y = x.new_empty(n, {outputs})",
            *guarded(
                tiles(self.way.tile, f"tile(x[a:b], y[a:b], {arguments}, *buffers)", "buffers")
            ),
            *late,
            "return y",
        ]
        return "\n\n".join(
            [buffers("buffers_of", self), tile, f"def forward(x, {arguments}):\n{indented(body)}"]
        )
