"""Print a program as torch functions of mm, bmm and views.

`forward(x, operands.., bias)` takes rows `[n, inputs]` and operands as the program lays them out,
and returns `[n, outputs]`. `backward(dy, x, operands..)` recomputes what it needs and returns one
gradient for each thing that needs one. With `tile`, rows are taken so many at a time, and results
between steps stay in buffers that fit the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from tnc.derive.dense import INPUT, ROWS
from tnc.kernels.program import (
    Copy,
    Matrix,
    Multiply,
    Program,
    input_gradient,
    operand_gradient,
)
from tnc.net import Axis

LOOPED = 8
"""A gradient that sums a batch of products takes them one by one up to so many."""


@dataclass(frozen=True)
class Way:
    """How a program is run: rows at a time (0: all), and the backend of every product."""

    tile: int = 0
    backends: tuple[str, ...] = ()
    single: bool = False
    """Whether there is one row only, as in a bucket of its own."""
    emitter: str = "torch"
    """What runs the steps: 'torch', or 'numba' for loops over a few rows without gradients."""


def emit(program: Program, way: Way, *, bias: bool = False, needs: Sequence[str] = ()) -> str:
    """Return the source of `forward`, and of `backward` where anything `needs` a gradient.

    `needs` has names of operands, and 'input'.
    """
    parts = [_Forward(program, way, bias).text()]
    if needs:
        parts.append(_Backward(program, way, frozenset(needs)).text())
    return "\n\n".join(parts)


@dataclass
class _Writer:
    """Lines of one function, and how its values are shaped."""

    program: Program
    way: Way
    lines: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    backend: str = ""
    buffers: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = dict(self.program.sizes)

    @property
    def into(self) -> bool:
        """Whether results go to buffers."""
        return bool(self.way.tile)

    def extent(self, axis: Axis) -> str:
        """Write the size of a group, where rows are `n`."""
        known = prod([self.size[name] for name in axis if name != ROWS])
        if ROWS not in axis or self.way.single:
            return str(known)
        return "n" if known == 1 else f"{known} * n"

    def extents(self, groups: Sequence[Axis]) -> tuple[str, ...]:
        return tuple(self.extent(group) for group in groups)

    def view(self, name: str, shape: tuple[str, ...]) -> str:
        """Write a value in a shape that its memory allows."""
        if self.shapes[name] == shape:
            return name
        return f"{name}.view({', '.join(shape)})"

    def add(self, line: str) -> None:
        self.lines.append(line)

    def use(self, backend: str) -> None:
        """Switch the library that multiplies, where it is another one."""
        if backend and backend != self.backend:
            self.add(f'use("{backend}")')
            self.backend = backend

    def buffer(self, name: str, shape: tuple[str, ...]) -> str:
        """Name a place for a result: a buffer of the tile, or new memory."""
        self.shapes[name] = shape
        if self.into:
            self.buffers[name] = shape
        else:
            self.add(f"{name} = x.new_empty({', '.join(shape)})")
        return name

    def multiply(self, step: Multiply, *, out: str = "", bias: str = "", add: bool = False) -> None:
        """Write a product into the value `step.result`, which is memory `out` if that is given.

        With `add` it is added to what is there.
        """
        name = step.result.value
        shape = self.extents(step.result.groups)
        first, second = self.factors(step)
        strided = step.result.roles[0] != "b" and "b" in step.result.roles
        call = "bmm" if "b" in step.result.roles else "mm"
        if add:
            if strided:
                out = f"{out}.transpose(0, 1)"
            self.add(f"{out}.{'baddbmm_' if call == 'bmm' else 'addmm_'}({first}, {second})")
            return
        if not out and not self.into and not strided:
            self.shapes[name] = shape
            if bias:
                self.add(f"{name} = addmm({bias}, {first}, {second})")
            else:
                self.add(f"{name} = {call}({first}, {second})")
            return
        place = out or self.buffer(name, shape)
        if out:
            self.shapes[name] = shape
            place = f"{out}.view({', '.join(shape)})" if self.shapes.get(out) != shape else out
        if strided:
            place = f"{place}.transpose(0, 1)"
        if bias:
            self.add(f"addmm({bias}, {first}, {second}, out={place})")
        else:
            self.add(f"{call}({first}, {second}, out={place})")
        if out and out != name:
            self.add(f"{name} = {out}")
            self.shapes[name] = self.shapes[out]

    def factors(self, step: Multiply) -> tuple[str, str]:
        """Write the two factors, turned for the call that gives the result as it lies."""
        rows, columns = (role for role in step.result.roles if role != "b")
        summed = next(r for r in step.left.roles if r not in ("b", rows, columns))
        batch = self.extent(step.result.group("b")) if "b" in step.result.roles else ""
        left_first = rows in step.left.roles
        pair = (step.left, step.right) if left_first else (step.right, step.left)
        wanted = ((rows, summed), (summed, columns))
        first, second = (self.turned(m, roles, batch) for m, roles in zip(pair, wanted))
        return first, second

    def turned(self, matrix: Matrix, roles: tuple[str, str], batch: str) -> str:
        """Write a value as `(batch, *roles)`, or `roles` where there is no batch."""
        text = self.view(matrix.value, self.extents(matrix.groups))
        if not batch:
            return text if matrix.roles == "".join(roles) else f"{text}.t()"
        if "b" not in matrix.roles:
            turned = text if matrix.roles == "".join(roles) else f"{text}.t()"
            return f"{turned}.expand({batch}, -1, -1)"
        order = tuple(matrix.roles.index(role) for role in ("b", *roles))
        if order == (0, 1, 2):
            return text
        swaps: dict[tuple[int, ...], str] = {
            (0, 2, 1): "1, 2",
            (1, 0, 2): "0, 1",
            (2, 1, 0): "0, 2",
        }
        swapped = swaps.get(order)
        if swapped:
            return f"{text}.transpose({swapped})"
        return f"{text}.permute({', '.join(map(str, order))})"

    def copy(self, name: str, source: str, before: Axis, after: Axis, out: str = "") -> None:
        """Write `source` in another order; where memory does not change nothing is written."""
        size = {**self.size, ROWS: 1 if self.way.single else 0}
        before = tuple(n for n in before if size[n] != 1)
        after = tuple(n for n in after if size[n] != 1)
        if before == after and not out:
            self.add(f"{name} = {source}")
            self.shapes[name] = self.shapes[source]
            return
        runs = _runs(before, after)
        shape = self.extents(runs)
        order = tuple(runs.index(run) for run in sorted(runs, key=lambda r: after.index(r[0])))
        text = self.view(source, shape)
        if order == (1, 0):
            text = f"{text}.t()"
        elif order != tuple(range(len(order))):
            text = f"{text}.permute({', '.join(map(str, order))})"
        final = tuple(shape[place] for place in order)
        if out:
            place = out if self.shapes[out] == final else f"{out}.view({', '.join(final)})"
            self.add(f"{place}.copy_({text})")
        elif self.into:
            self.buffer(name, final)
            self.add(f"{name}.copy_({text})")
        else:
            self.add(f"{name} = {text}.contiguous()")
            self.shapes[name] = final

    def start(self) -> None:
        """Know the shapes of the operands."""
        for step in self.program.products:
            self.shapes[step.right.value] = self.extents(step.right.groups)

    def steps(self, upto: int, *, bias: str = "", out: str = "") -> None:
        """Write the first steps; the last of all writes into `out` if that is given."""
        places = iter(range(len(self.program.products)))
        for place, step in enumerate(self.program.steps[:upto]):
            final = place == len(self.program.steps) - 1
            if isinstance(step, Copy):
                self.copy(step.result, step.source, step.before, step.after, out if final else "")
                continue
            self.use(self.backend_of(next(places)))
            self.multiply(step, out=out if final else "", bias=bias if final else "")

    def backend_of(self, place: int) -> str:
        return self.way.backends[place] if self.way.backends else ""

    @property
    def arguments(self) -> list[str]:
        return [operand.name for operand in self.program.operands]


def _runs(before: Axis, after: Axis) -> list[Axis]:
    """Split an order into the runs that stay together in another one."""
    runs: list[list[str]] = []
    for name in before:
        if runs and after.index(runs[-1][-1]) + 1 == after.index(name):
            runs[-1].append(name)
        else:
            runs.append([name])
    return [tuple(run) for run in runs]


def _indented(lines: Sequence[str], depth: int = 1) -> str:
    return "\n".join("    " * depth + line for line in lines)


class _Forward(_Writer):
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
            return "\n".join([f"def forward(x, {arguments}):", _indented([
                *count, f"{INPUT} = x", *_guarded(switched), "return y"])])  # fmt: skip
        self.shapes["y"] = wide
        self.steps(len(self.program.steps), bias=bias, out="y")
        tile = _tile_function("tile", [INPUT, "y", arguments], self)
        body = [
            "n = x.shape[0]",
            f"y = x.new_empty(n, {outputs})",
            *_guarded(
                _tiles(self.way.tile, f"tile(x[a:b], y[a:b], {arguments}, *buffers)", "buffers")
            ),
            *late,
            "return y",
        ]
        return "\n\n".join(
            [_buffers("buffers_of", self), tile, f"def forward(x, {arguments}):\n{_indented(body)}"]
        )


class _Backward(_Writer):
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
            body = [*count, f"{INPUT} = x", *_guarded(self.lines), f"return {returned},"]
            return f"def backward(dy, x, {arguments}):\n{_indented(body)}"
        grads = [f"d_{name}" for name in kept]
        own = ["dx"] if INPUT in self.needs else []
        tile = _tile_function("back_tile", [INPUT, "dy", *own, arguments, *grads], self)
        slices = ", ".join(
            ["x[a:b]", "dy[a:b]", *(["dx[a:b]"] if own else []), arguments, *grads, "*buffers"]
        )
        body = [
            "n = x.shape[0]",
            *([f"dx = x.new_empty(n, {inputs})"] if own else []),
            *(f"{g} = x.new_zeros({', '.join(self.shapes[g])})" for g in grads),
            *_guarded(_tiles(self.way.tile, f"back_tile({slices})", "back_buffers")),
            f"return {returned},",
        ]
        return "\n\n".join(
            [
                _buffers("back_buffers_of", self),
                tile,
                f"def backward(dy, x, {arguments}):\n{_indented(body)}",
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


def _guarded(lines: Sequence[str]) -> list[str]:
    """Give the library back as it was, where lines switch it."""
    if not any("use(" in line or "tile(" in line for line in lines):
        return list(lines)
    return ["with switching():", *("    " + line for line in lines)]


def _tile_function(name: str, arguments: Sequence[str], writer: _Writer) -> str:
    named = ", ".join([*arguments, *writer.buffers])
    return f"def {name}({named}):\n" + _indented([f"n = {INPUT}.shape[0]", *writer.lines])


def _buffers(name: str, writer: _Writer) -> str:
    made = [f"x.new_empty({', '.join(shape)})," for shape in writer.buffers.values()]
    inside = "\n".join("        " + line for line in made)
    return f"def {name}(x, n):\n    return (\n{inside}\n    )"


def _tiles(tile: int, call: str, buffers: str) -> list[str]:
    return [
        f"buffers = {buffers}_of(x, {tile})",
        f"whole = n - n % {tile}",
        f"for a in range(0, whole, {tile}):",
        f"    b = a + {tile}",
        f"    {call}",
        "if whole < n:",
        "    a, b = whole, n",
        f"    buffers = {buffers}_of(x, n - whole)",
        f"    {call}",
    ]  # fmt: skip
