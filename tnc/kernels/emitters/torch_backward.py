"""The function `backward` of a program: what is recomputed, then the gradients."""

from __future__ import annotations

from tnc.derive.dense import INPUT, ROWS
from tnc.kernels.emitters.tiles import buffers, guarded, tile_function, tiles
from tnc.kernels.emitters.writer import Writer, indented
from tnc.kernels.program import (
    Copy,
    Matrix,
    Multiply,
    Program,
    input_gradient,
    operand_gradient,
)
from tnc.kernels.way import Way

LOOPED = 8
"""A gradient that sums a batch of products takes them one by one up to so many."""


class Backward(Writer):
    def __init__(self, program: Program, way: Way, needs: frozenset[str]) -> None:
        super().__init__(program, way)
        self.needs = needs

    def text(self) -> str:
        self.start()
        program = self.program
        rows = "1" if self.way.single else "n"
        inputs = self.extent(program.inputs)
        outputs = self.extent(tuple(n for n in program.output if n != ROWS))
        self.shapes[INPUT], self.shapes["dy"] = (rows, inputs), (rows, outputs)
        first = self._first()
        kept = [step.right.value for step in program.products if step.right.value in self.needs]
        for name in kept:
            step = next(s for s in program.products if s.right.value == name)
            self.shapes[f"d_{name}"] = self.extents(step.right.groups)
        if self.into and INPUT in self.needs:
            self.shapes["dx"] = (rows, inputs)
        self._recompute()
        self._reverse(first)
        returned = ", ".join(
            [*(["dx"] if INPUT in self.needs else []), *(f"d_{name}" for name in kept)]
        )
        arguments = ", ".join(self.arguments)
        count = [] if self.way.single else ["n = x.shape[0]"]
        if not self.into:
            body = [*count, f"{INPUT} = x", *guarded(self.lines), f"return {returned},"]
            return f"def backward(dy, x, {arguments}):\n{indented(body)}"
        grads = [f"d_{name}" for name in kept]
        own = ["dx"] if INPUT in self.needs else []
        tile = tile_function("back_tile", [INPUT, "dy", *own, arguments, *grads], self)
        slices = ", ".join(
            ["x[a:b]", "dy[a:b]", *(["dx[a:b]"] if own else []), arguments, *grads, "*buffers"]
        )
        body = [
            "n = x.shape[0]",
            *([f"dx = x.new_empty(n, {inputs})"] if own else []),
            *(f"{g} = x.new_zeros({', '.join(self.shapes[g])})" for g in grads),
            *guarded(tiles(self.way.tile, f"back_tile({slices})", "back_buffers")),
            f"return {returned},",
        ]
        return "\n\n".join(
            [
                buffers("back_buffers_of", self),
                tile,
                f"def backward(dy, x, {arguments}):\n{indented(body)}",
            ]
        )

    def _first(self) -> int:
        """The place of the first step whose gradient is needed."""
        if INPUT in self.needs:
            return 0
        for place, step in enumerate(self.program.steps):
            if isinstance(step, Multiply) and step.right.value in self.needs:
                return place
        return len(self.program.steps)

    def _recompute(self) -> None:
        """Write what the operands met, up to the last operand that needs a gradient."""
        last = 0
        for place, step in enumerate(self.program.steps):
            if isinstance(step, Multiply) and step.right.value in self.needs:
                last = place
        self.steps(last)

    def _reverse(self, first: int) -> None:
        steps = self.program.steps
        final = steps[-1]
        name = final.result if isinstance(final, Copy) else final.result.value
        self.add(f"d_{name} = dy")
        self.shapes[f"d_{name}"] = self.shapes["dy"]
        count = len(self.program.products)
        for place in range(len(steps) - 1, first - 1, -1):
            step = steps[place]
            if isinstance(step, Copy):
                out = "dx" if self.into and step.source == INPUT else ""
                self.copy(f"d_{step.source}", f"d_{step.result}", step.after, step.before, out)
                continue
            count -= 1
            self.use(self.backend_of(count))
            if step.right.value in self.needs:
                self._operand(step)
            if place > first or INPUT in self.needs:
                out = "dx" if self.into and step.left.value == INPUT else ""
                self.multiply(input_gradient(step), out=out)
        if not self.into and INPUT in self.needs:
            shape = self.shapes[INPUT]
            self.add(f"dx = {self.view('d_' + INPUT, shape)}")

    def _operand(self, step: Multiply) -> None:
        """Write an operand's gradient: one product, or a sum of a batch of them."""
        back = operand_gradient(step)
        out = back.result.value
        if "b" not in back.left.roles or "b" in back.result.roles:
            self.multiply(back, out=out if self.into else "", add=self.into)
            return
        rows, columns = tuple(back.result.roles)
        batch = self.extent(back.left.group("b"))
        pair = (back.left, back.right) if rows in back.left.roles else (back.right, back.left)
        first = self.turned(pair[0], (rows, "m"), batch)
        second = self.turned(pair[1], ("m", columns), batch)
        shape = self.extents(back.result.groups)
        if batch.isdigit() and int(batch) <= LOOPED:
            if not self.into:
                self.add(f"{out} = x.new_zeros({', '.join(shape)})")
                self.shapes[out] = shape
            self.add(f"for p, q in zip({first}, {second}):")
            self.add(f"    {out}.addmm_(p, q)")
            return
        self.shapes[out] = shape
        flat = self.extent(back.left.group("b") + back.left.group("m"))
        left = f"{self._ordered(pair[0], (rows, 'b', 'm'))}.reshape({shape[0]}, {flat})"
        right = f"{self._ordered(pair[1], ('b', 'm', columns))}.reshape({flat}, {shape[1]})"
        if self.into:
            self.add(f"{out}.addmm_({left}, {right})")
        else:
            self.add(f"{out} = mm({left}, {right})")

    def _ordered(self, matrix: Matrix, roles: tuple[str, str, str]) -> str:
        text = self.view(matrix.value, self.extents(matrix.groups))
        order = tuple(matrix.roles.index(role) for role in roles)
        return text if order == (0, 1, 2) else f"{text}.permute({', '.join(map(str, order))})"
