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
    recomputed,
    written,
)
from tnc.kernels.sums import factors, flattened, summed
from tnc.kernels.way import Gradients, Way

LOOPED = 8
"""Unless a way says how, a gradient that sums up to so many products takes them one by one."""


class Backward(Writer):
    """Lines of `backward(dy, x, kept values.., operands..)`."""

    def __init__(self, program: Program, way: Way, needs: frozenset[str]) -> None:
        given, self.again = recomputed(program, needs, way.back.kept)
        super().__init__(program, way, kept=given)
        self.needs = needs

    @property
    def tile(self) -> int:
        """Rows at a time, which need not be those of the forward."""
        return self.way.back.tile

    def text(self) -> str:
        """Write the function, and those that it calls."""
        self.start()
        program = self.program
        rows = "1" if self.way.single else "n"
        inputs = self.extent(program.inputs)
        outputs = self.extent(tuple(n for n in program.output if n != ROWS))
        self.shapes |= {INPUT: (rows, inputs), "dy": (rows, outputs)}
        self.shapes |= dict.fromkeys(self.kept, ())  # flat, or as the forward had them
        wanted = [step for step in program.products if step.right.value in self.needs]
        grads = [f"d_{step.right.value}" for step in wanted]
        backs = [operand_gradient(step, self._how(step).turned) for step in wanted]
        self.shapes |= {g: self.extents(back.result.groups) for g, back in zip(grads, backs)}
        own = ["dx"] if INPUT in self.needs else []
        if self.into and own:
            self.shapes["dx"] = (rows, inputs)
        self.steps(self.again)
        self._reverse()
        head = f"def backward({', '.join(['dy', 'x', *self.kept, *self.arguments])}):"
        views = [self._as_operand(*pair) for pair in zip(grads, wanted)]
        returned = f"return {', '.join([*own, *views])},"
        if not self.into:
            count = [] if self.way.single else ["n = x.shape[0]"]
            body = [*count, f"{INPUT} = x", *guarded(self.lines), returned]
            return f"{head}\n{indented(body)}"
        tile = tile_function(
            "back_tile", [INPUT, "dy", *own, *self.kept, *self.arguments, *grads], self
        )
        parts = ["x[a:b]", "dy[a:b]", *(["dx[a:b]"] if own else []), *self.parts(self.kept)]
        call = f"back_tile({', '.join([*parts, *self.arguments, *grads, '*buffers'])})"
        body = [
            "n = x.shape[0]",
            *([f"dx = x.new_empty(n, {inputs})"] if own else []),
            *(f"{g} = x.new_zeros({', '.join(self.shapes[g])})" for g in grads),
            *guarded(tiles(self.tile, call, "back_buffers")),
            returned,
        ]
        return "\n\n".join([buffers("back_buffers_of", self), tile, f"{head}\n{indented(body)}"])

    def _first(self) -> int:
        """The place of the first step whose gradient is needed."""
        if INPUT in self.needs:
            return 0
        for place, step in enumerate(self.program.steps):
            if isinstance(step, Multiply) and step.right.value in self.needs:
                return place
        return len(self.program.steps)

    def _reverse(self) -> None:
        """Write the gradients, from the last step to the first one that needs some."""
        steps, first = self.program.steps, self._first()
        name = written(steps[-1])
        self.add(f"d_{name} = dy")
        self.shapes[f"d_{name}"] = self.shapes["dy"]
        for place in range(len(steps) - 1, first - 1, -1):
            step = steps[place]
            if isinstance(step, Copy):
                out = "dx" if self.into and step.source == INPUT else ""
                self.copy(f"d_{step.source}", f"d_{step.result}", step.after, step.before, out)
                continue
            how = self._how(step)
            if step.right.value in self.needs:
                self.use(how.operand)
                self._operand(operand_gradient(step, how.turned), how.sum)
            if place > first or INPUT in self.needs:
                self.use(how.input)
                out = "dx" if self.into and step.left.value == INPUT else ""
                self.multiply(input_gradient(step), out=out)
        if not self.into and INPUT in self.needs:
            shape = self.shapes[INPUT]
            self.add(f"dx = {self.view('d_' + INPUT, shape)}")

    def _as_operand(self, name: str, step: Multiply) -> str:
        """Write an operand's gradient in the shape of the operand, a view where it is turned."""
        if not self._how(step).turned:
            return name
        roles = step.right.roles
        places = sorted((roles.index("k"), roles.index("n")))
        return f"{name}.transpose({places[0]}, {places[1]})"

    def _how(self, step: Multiply) -> Gradients:
        """Return how the gradients of a product are taken."""
        place = self.program.products.index(step)
        if self.way.back.gradients:
            return self.way.back.gradients[place]
        name = self.backend_of(place)
        return Gradients(name, name)

    def _operand(self, back: Multiply, how: str) -> None:
        """Write an operand's gradient: one product, or a sum of a batch of them."""
        out = back.result.value
        if not summed(back):
            self.multiply(back, out=out if self.into else "", add=self.into)
            return
        pair = factors(back)
        shape = self.extents(back.result.groups)
        batch = self.extent(pair[0].group("b"))
        self.shapes[out] = shape
        if not how:
            how = "each" if batch.isdigit() and int(batch) <= LOOPED else "flat"
        if how == "flat":
            long = self.extent(pair[0].group("b") + pair[0].group("m"))
            orders = flattened(back, self.size)
            left = self._flat(pair[0], orders[0], long)
            right = self._flat(pair[1], orders[1], long, turned=True)
            product = f"({left}, {right})"
            self.add(f"{out}.addmm_{product}" if self.into else f"{out} = mm{product}")
            return
        rows, columns = tuple(back.result.roles)
        left = self.turned(pair[0], (rows, "m"), batch)
        right = self.turned(pair[1], ("m", columns), batch)
        if how == "batch":
            self._batch(out, (batch, *shape), left, right)
            return
        if not self.into:
            self.add(f"{out} = x.new_zeros({', '.join(shape)})")
        self.add(f"for p, q in zip({left}, {right}):")
        self.add(f"    {out}.addmm_(p, q)")

    def _batch(self, out: str, shape: tuple[str, ...], left: str, right: str) -> None:
        """Write a batch of products and their sum."""
        if not self.into:
            self.add(f"{out} = bmm({left}, {right}).sum(0)")
            return
        self.buffers[f"s_{out}"] = shape
        self.add(f"bmm({left}, {right}, out=s_{out})")
        self.add(f"{out}.add_(s_{out}.sum(0))")

    def _flat(self, matrix: Matrix, roles: str, long: str, turned: bool = False) -> str:
        """Write a factor as a matrix, copied where its memory has other `roles`.

        One side is the batch and m, which comes second, or first where `turned`.
        """
        text = self.view(matrix.value, self.extents(matrix.groups))
        order = tuple(matrix.roles.index(role) for role in roles)
        if order != (0, 1, 2):
            text = f"{text}.permute({', '.join(map(str, order))})"
        (own,) = (role for role in roles if role not in "bm")
        ahead = roles[0] == own
        sides = (self.extent(matrix.group(own)), long)
        text = f"{text}.reshape({', '.join(sides if ahead else sides[::-1])})"
        return text if ahead != turned else f"{text}.t()"
