"""The lines of one function of mm, bmm and views, written step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from tnc.derive.dense import ROWS
from tnc.kernels.program import Copy, Matrix, Multiply, Program, Step, extent, made, written
from tnc.kernels.way import Way
from tnc.net import Axis


@dataclass
class Writer:
    """Lines of one function, and how its values are shaped."""

    program: Program
    way: Way
    lines: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    backend: str = ""
    buffers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    """Values that are no buffers: a tile has its part of them from outside, as flat memory."""

    def __post_init__(self) -> None:
        self.size = dict(self.program.sizes)

    @property
    def tile(self) -> int:
        """Rows at a time; 0 where there is no loop over tiles."""
        return self.way.tile

    @property
    def into(self) -> bool:
        """Whether results go to buffers."""
        return bool(self.tile)

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
        if self.into and name in self.kept:
            self.add(f"{name} = {name}.view({', '.join(shape)})")
        elif self.into:
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
        runs = runs_of(before, after)
        shape = self.extents(runs)
        order = tuple(runs.index(run) for run in sorted(runs, key=lambda r: after.index(r[0])))
        text = self.view(source, shape)
        if order == (1, 0):
            text = f"{text}.t()"
        elif order != tuple(range(len(order))):
            text = f"{text}.permute({', '.join(map(str, order))})"
        final = tuple(shape[place] for place in order)
        compiled = self.way.copies == "numba" and len(order) > 1
        if out:
            place = out if self.shapes[out] == final else f"{out}.view({', '.join(final)})"
            self.add(f"turn({place}, {text})" if compiled else f"{place}.copy_({text})")
        elif self.into:
            self.buffer(name, final)
            self.add(f"turn({name}, {text})" if compiled else f"{name}.copy_({text})")
        else:
            made = f"turn(x.new_empty({', '.join(final)}), {text})"
            self.add(f"{name} = {made if compiled else f'{text}.contiguous()'}")
            self.shapes[name] = final

    def start(self) -> None:
        """Know the shapes of the operands."""
        for step in self.program.products:
            self.shapes[step.right.value] = self.extents(step.right.groups)

    def steps(self, steps: Sequence[Step], *, bias: str = "", out: str = "") -> None:
        """Write steps of the program; its last one writes into `out` if that is given."""
        for step in steps:
            final = step is self.program.steps[-1]
            if isinstance(step, Copy):
                self.copy(step.result, step.source, step.before, step.after, out if final else "")
                continue
            self.use(self.backend_of(self.program.products.index(step)))
            self.multiply(step, out=out if final else "", bias=bias if final else "")

    def backend_of(self, place: int) -> str:
        return self.way.backends[place] if self.way.backends else ""

    def width(self, value: str) -> int:
        """Return the entries of a value for one row."""
        (step,) = (step for step in self.program.steps if written(step) == value)
        return extent(made(step), self.size | {ROWS: 1})

    def parts(self, values: Sequence[str]) -> list[str]:
        """Write what belongs to the rows a to b of values in flat memory."""
        return [f"{name}[{self.width(name)} * a : {self.width(name)} * b]" for name in values]

    @property
    def arguments(self) -> list[str]:
        return [operand.name for operand in self.program.operands]


def runs_of(before: Axis, after: Axis) -> list[Axis]:
    """Split an order into the runs that stay together in another one."""
    runs: list[list[str]] = []
    for name in before:
        if runs and after.index(runs[-1][-1]) + 1 == after.index(name):
            runs[-1].append(name)
        else:
            runs.append([name])
    return [tuple(run) for run in runs]


def indented(lines: Sequence[str], depth: int = 1) -> str:
    return "\n".join("    " * depth + line for line in lines)
