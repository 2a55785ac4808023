"""Print a chain of products as one Triton kernel and the function that starts it.

Every program of the grid takes a block of rows. What lies between two products is a tile of it,
which never leaves the chip: sums are taken in float32, and a tile is rounded to the dtype of the
input where the next product reads it, as results in memory would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tnc.derive.dense import ROWS
from tnc.kernels.chain import DEEP, WIDEST, Chain, Link, chain_of, padded
from tnc.kernels.program import Program, extent
from tnc.net import Axis

ACTIVATIONS = {
    "": "{}",
    "relu": "tl.maximum({}, 0.0)",
    "silu": "({0} * tl.sigmoid({0}))",
    "gelu": "(0.5 * {0} * (1.0 + tl.erf(0.7071067811865476 * {0})))",
}
"""What may follow the last product."""
MANY = 64 * 128
"""Entries of a tile from which it is shared out to eight warps instead of four."""


@dataclass(frozen=True)
class Index:
    """A variable that walks some legs together, the last one fastest; `shown` broadcasts it."""

    name: str
    legs: Axis
    shown: str = ""


def emit(program: Program, rows: int, *, bias: bool = False, activation: str = "") -> str:
    """Return the source for so many rows a program, a power of two.

    Raises ValueError where the program is no chain, KeyError for an unknown activation.
    """
    return _Writer(program, chain_of(program), rows, bias, ACTIVATIONS[activation]).text()


@dataclass
class _Writer:
    program: Program
    chain: Chain
    rows: int
    bias: bool
    activation: str
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size = dict(self.program.sizes)
        self.names = [operand.name for operand in self.program.operands]
        self.last = self.chain.links[-1]
        self.outputs = tuple(name for name in self.program.output if name != ROWS)
        self.wide = extent(self.last.columns, self.size)
        self.block = min(WIDEST, padded(self.wide))
        self.walked = [Index("g", self.chain.grid)]

    def text(self) -> str:
        strides = [
            f"by_{name}_{place}"
            for name, step in zip(self.names, self.program.products)
            for place in range(len(step.right.groups))
        ]
        biased = ["bias"] if self.bias else []
        arguments = ["x", *self.names, *biased, "y", "n", *strides, "share"]
        self._body()
        body = "\n".join("    " + line for line in self.lines)
        head = f"@triton.jit\ndef kernel({', '.join(arguments)}, precision: tl.constexpr):"
        return f"{head}\n{body}\n\n\n{self._start(biased)}"

    def _start(self, biased: Sequence[str]) -> str:
        given = ", ".join([*self.names, *biased])
        strides = ", ".join(f"*{name}.stride()" for name in self.names)
        tiles = [self.rows * padded(extent(link.columns, self.size)) for link in self.chain.links]
        warps = 8 if min(max(tiles), self.rows * WIDEST) > MANY else 4
        programs = extent(self.chain.grid, self.size)
        return "\n".join([
            f"def forward(x, {given}):",
            "    n = x.shape[0]",
            f"    y = x.new_empty(n, {extent(self.outputs, self.size)})",
            f"    blocks = -(-n // {self.rows})",
            f"    share = shared_out(x, {self.wide}, {self.block}, blocks * {programs}, "
            f"{self.chain.resident})",
            f"    grid = (blocks, -(-{self.wide} // share), {programs})",
            f"    kernel[grid](x, {given}, y, n, {strides}, share, precision(x), "
            f"num_warps={warps})",
            "    return y",
        ])  # fmt: skip

    def _body(self) -> None:
        self.add(
            0, f"m = (tl.program_id(0) * {self.rows} + tl.arange(0, {self.rows})).to(tl.int64)"
        )
        if self.chain.grid:
            self.add(0, f"g = tl.program_id(2)  # {' '.join(self.chain.grid)}")
        count = len(self.chain.links)
        for place, link in enumerate(self.chain.links[:-1]):
            wide = padded(extent(link.columns, self.size))
            self.add(0, f"r{place} = tl.arange(0, {wide})  # {' '.join(link.columns)}")
        self.add(0, "first = tl.program_id(1) * share")
        if not self.chain.resident:
            self.add(0, f"c = first + tl.arange(0, {self.block})  # {' '.join(self.last.columns)}")
            self._product(count - 1, 0)
            self._store(count - 1, 0)
            return
        self._product(count - 2, 0)
        self._rounded(count - 2, 0)
        self.add(0, f"for start in range(first, tl.minimum(first + share, {self.wide}), "
                    f"{self.block}):")  # fmt: skip
        self.add(1, f"c = start + tl.arange(0, {self.block})  # {' '.join(self.last.columns)}")
        self._times(count - 1, 1, self.walked, "=")
        self._store(count - 1, 1)

    def add(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def _product(self, place: int, depth: int) -> None:
        """Write what makes the tile `t{place}`, in float32."""
        link = self.chain.links[place]
        if place == 0:
            self._first(link, depth)
            return
        if not link.looped:
            self._product(place - 1, depth)
            self._rounded(place - 1, depth)
            self._times(place, depth, self.walked, "=")
            return
        loop = Index(f"s{place}", link.looped)
        wide = self.block if link is self.last else padded(extent(link.columns, self.size))
        self.add(depth, f"t{place} = tl.zeros(({self.rows}, {wide}), tl.float32)")
        self.add(depth, f"for {loop.name} in range({extent(link.looped, self.size)}):"
                        f"  # {' '.join(link.looped)}")  # fmt: skip
        self.walked.append(loop)
        self._product(place - 1, depth + 1)
        self._rounded(place - 1, depth + 1)
        self._times(place, depth + 1, self.walked, "+=")
        self.walked.remove(loop)

    def _first(self, link: Link, depth: int) -> None:
        deep, wide = extent(link.summed, self.size), padded(extent(link.columns, self.size))
        block = min(DEEP, padded(deep))
        self.add(depth, f"t0 = tl.zeros(({self.rows}, {wide}), tl.float32)")
        self.add(depth, f"for k0 in range(0, {deep}, {block}):  # {' '.join(link.summed)}")
        self.add(depth + 1, f"k = k0 + tl.arange(0, {block})")
        inputs = tuple(self.program.inputs)
        across = [Index("k", link.summed, "[None, :]"), *self.walked]
        left = f"x + m[:, None] * {extent(inputs, self.size)} + {self.flat(inputs, across)}"
        mask = _masks("(m < n)[:, None]", _less("k", deep, block, "[None, :]"))
        self.add(depth + 1, f"a = tl.load({left}, mask={mask}, other=0.0)")
        self._operand(0, "k", deep, block, depth + 1)
        self.add(depth + 1, "t0 += tl.dot(a, b0, input_precision=precision)")

    def _times(self, place: int, depth: int, walked: Sequence[Index], how: str) -> None:
        deep = extent(self.chain.links[place - 1].columns, self.size)
        self._operand(place, f"r{place - 1}", deep, padded(deep), depth)
        self.add(depth, f"t{place} {how} tl.dot(a{place - 1}, b{place}, input_precision=precision)")

    def _operand(self, place: int, deep: str, count: int, block: int, depth: int) -> None:
        """Write the load of an operand's tile `b{place}`, from what is summed to the columns."""
        link, name = self.chain.links[place], self.names[place]
        final = link is self.last
        column = "c" if final else f"r{place}"
        wide = self.block if final else padded(extent(link.columns, self.size))
        indices = [
            Index(deep, link.summed, "[:, None]"),
            Index(column, link.columns, "[None, :]"),
            *self.walked,
        ]
        groups = [
            (self.flat(group, indices), f"by_{name}_{number}")
            for number, group in enumerate(link.step.right.groups)
        ]
        places = " + ".join(_times(index, stride) for index, stride in groups if index != "0")
        columns = extent(link.columns, self.size)
        mask = _masks(
            _less(deep, count, block, "[:, None]"), _less(column, columns, wide, "[None, :]")
        )
        read = f"{name} + {places or '0'}"
        shape = f"tl.zeros(({block}, {wide}), tl.int32)"
        if "[:, None]" not in places or "[None, :]" not in places:
            read += f" + {shape}"  # an index of one entry does not spread the tile
        self.add(
            depth, f"b{place} = tl.load({read}" + (f", mask={mask}, other=0.0)" if mask else ")")
        )

    def _rounded(self, place: int, depth: int) -> None:
        self.add(depth, f"a{place} = t{place}.to(x.dtype.element_ty)")

    def _store(self, place: int, depth: int) -> None:
        indices = [Index("c", self.last.columns), *self.walked]
        value = f"t{place}"
        if self.bias:
            mask = _less("c", self.wide, self.block, "")
            read = f"bias + {self.flat(self.outputs, indices)}"
            if not self.last.columns:
                read += f" + tl.zeros(({self.block},), tl.int32)"
            masked = f", mask={mask}, other=0.0)" if mask else ")"
            self.add(depth, f"{value} += tl.load({read}{masked}.to(tl.float32)[None, :]")
        if self.activation != "{}":
            self.add(depth, f"{value} = {self.activation.format(value)}")
        shown = [Index("c", self.last.columns, "[None, :]"), *self.walked]
        whole = extent(self.outputs, self.size)
        to = f"y + m[:, None] * {whole} + {self.flat(self.outputs, shown)}"
        if not self.last.columns:
            to += " + c[None, :]"
        mask = _masks("(m < n)[:, None]", f"(c < {self.wide})[None, :]")
        self.add(depth, f"tl.store({to}, {value}.to(y.dtype.element_ty), mask={mask})")

    def flat(self, group: Axis, indices: Sequence[Index]) -> str:
        """Write where the indices point in legs that lie one after another, first outermost."""
        group = tuple(name for name in group if self.size[name] != 1)
        terms = []
        for index in indices:
            for run in _runs([name for name in index.legs if name in group], index.legs, group):
                stride = extent(group[group.index(run[-1]) + 1 :], self.size)
                terms.append(_times(self._digits(index, run), str(stride)))
        return " + ".join(terms) or "0"

    def _digits(self, index: Index, run: Axis) -> str:
        """Write the part of an index that counts a run of its legs."""
        first, after = index.legs.index(run[0]), index.legs.index(run[-1]) + 1
        text, behind = index.name, extent(index.legs[after:], self.size)
        if behind > 1:
            text = f"{text} // {behind}"
        if first:
            text = f"{text} % {extent(run, self.size)}"
        return f"({text}){index.shown}" if text != index.name else text + index.shown


def _runs(names: Sequence[str], order: Axis, group: Axis) -> list[Axis]:
    """Split legs into runs that follow one another both in an index and in memory."""
    runs: list[list[str]] = []
    for name in names:
        before = runs[-1][-1] if runs else ""
        if before and all(legs.index(before) + 1 == legs.index(name) for legs in (order, group)):
            runs[-1].append(name)
        else:
            runs.append([name])
    return [tuple(run) for run in runs]


def _times(index: str, stride: str) -> str:
    if stride == "1":
        return index
    return f"({index}) * {stride}" if " + " in index else f"{index} * {stride}"


def _less(name: str, count: int, block: int, shown: str) -> str:
    return "" if count % block == 0 else f"({name} < {count}){shown}"


def _masks(*masks: str) -> str:
    return " & ".join(mask for mask in masks if mask)
