"""Blocks of memory copied and turned, written as LLVM instructions over vectors.

Addresses and strides are bytes. `like` is any number of as many bytes as an item has: items are
moved, never computed with.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from tnc.kernels.loops.tiles import BYTES

EDGE = 16
"""The most items that an edge of a turned block has: as many vectors are held at a time."""
_INT = ir.IntType(64)


def _whole(value: int) -> Any:
    return ir.Constant(_INT, value)


def edge(size: int) -> int:
    """Return the items along an edge of the block that is turned at a time."""
    return min(EDGE, BYTES // size)


class _Words:
    """Writes loads, stores and shuffles of vectors of items."""

    def __init__(self, builder: Any, like: Any, lanes: int) -> None:
        self.builder, self.size, self.lanes = builder, _bytes(like), lanes
        self.vector = ir.VectorType(ir.IntType(8 * self.size), lanes)
        self.suffix = f"v{lanes}i{8 * self.size}"

    def at(self, address: Any, stride: Any, count: int) -> Any:
        return self.builder.add(address, self.builder.mul(stride, _whole(count)))

    def load(self, address: Any) -> Any:
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        return self.builder.load(pointer, align=self.size)

    def store(self, value: Any, address: Any) -> None:
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        self.builder.store(value, pointer, align=self.size)

    def load_first(self, address: Any, mask: Any) -> Any:
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        align = ir.Constant(ir.IntType(32), self.size)
        name = f"llvm.masked.load.{self.suffix}.p0"
        other = ir.Constant(self.vector, [0] * self.lanes)
        return self._call(name, self.vector, pointer, align, mask, other)

    def store_first(self, value: Any, address: Any, mask: Any) -> None:
        pointer = self.builder.inttoptr(address, self.vector.as_pointer())
        align = ir.Constant(ir.IntType(32), self.size)
        name = f"llvm.masked.store.{self.suffix}.p0"
        self._call(name, ir.VoidType(), value, pointer, align, mask)

    def first(self, count: Any) -> Any:
        """Return the mask of the first `count` lanes."""
        places = ir.VectorType(_INT, self.lanes)
        nothing, zero = ir.Constant(places, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        order = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        one = self.builder.insert_element(nothing, count, zero)
        most = self.builder.shuffle_vector(one, nothing, order)
        return self.builder.icmp_signed("<", ir.Constant(places, list(range(self.lanes))), most)

    def turned(self, rows: list[Any]) -> list[Any]:
        """Transpose a square block: in each round, halves of pairs of rows change places."""
        lanes, half = self.lanes, 1
        while half < lanes:
            made = list(rows)
            low = [i if not i & half else lanes + i - half for i in range(lanes)]
            high = [i + half if not i & half else lanes + i for i in range(lanes)]
            for i in range(lanes):
                if not i & half:
                    made[i] = self._shuffle(rows[i], rows[i + half], low)
                    made[i + half] = self._shuffle(rows[i], rows[i + half], high)
            rows, half = made, 2 * half
        return rows

    def _shuffle(self, one: Any, other: Any, order: list[int]) -> Any:
        places = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), order)
        return self.builder.shuffle_vector(one, other, places)

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [each.type for each in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)


def _bytes(like: Any) -> int:
    if isinstance(like, ir.IntType):
        return int(like.width // 8)
    return 4 if isinstance(like, ir.FloatType) else 8


@intrinsic
def edge_of(typing, like):
    """Return the items along an edge of the block that is turned at a time."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _whole(edge(_bytes(arguments[0].type)))

    return types.intp(like), write


@intrinsic
def turn_block(typing, like, target, source, row, column):
    """Make `target[j, i] = source[i, j]` of a whole block; `row` of target, `column` of source.

    Both are strides: of j in the target and of i in the source; the others are items.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        like, target, source, row, column = arguments
        w = _Words(builder, like.type, edge(_bytes(like.type)))
        rows = [w.load(w.at(source, column, i)) for i in range(w.lanes)]
        for j, value in enumerate(w.turned(rows)):
            w.store(value, w.at(target, row, j))
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 4), write


@intrinsic
def turn_edge(typing, like, target, source, row, column, high, wide):
    """Do as `turn_block` for the first `high` j and `wide` i; nothing else is read or written."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        like, target, source, row, column, high, wide = arguments
        w = _Words(builder, like.type, edge(_bytes(like.type)))
        last, taken, kept = builder.sub(wide, _whole(1)), w.first(high), w.first(wide)
        rows = []
        for i in range(w.lanes):
            inside = builder.icmp_signed("<", _whole(i), wide)
            place = builder.select(inside, _whole(i), last)
            rows.append(w.load_first(builder.add(source, builder.mul(column, place)), taken))
        for j, value in enumerate(w.turned(rows)):
            with builder.if_then(builder.icmp_signed("<", _whole(j), high)):
                w.store_first(value, w.at(target, row, j), kept)
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 6), write


@intrinsic
def lanes_of(typing, like):
    """Return the items of a vector."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _whole(BYTES // _bytes(arguments[0].type))

    return types.intp(like), write


@intrinsic
def piece(typing, like, target, source, count):
    """Copy `count` items that lie one after another, at most a vector of them."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        like, target, source, count = arguments
        w = _Words(builder, like.type, BYTES // _bytes(like.type))
        mask = w.first(count)
        w.store_first(w.load_first(source, mask), target, mask)
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 3), write


@intrinsic
def stretch(typing, like, target, source, count):
    """Copy `count` items that lie one after another."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        like, target, source, count = arguments
        w = _Words(builder, like.type, BYTES // _bytes(like.type))
        whole = builder.sdiv(count, _whole(w.lanes))
        with cgutils.for_range(builder, whole) as loop:
            offset = builder.mul(loop.index, _whole(BYTES))
            w.store(w.load(builder.add(source, offset)), builder.add(target, offset))
        done = builder.mul(whole, _whole(w.lanes))
        left, offset = builder.sub(count, done), builder.mul(whole, _whole(BYTES))
        with builder.if_then(builder.icmp_signed(">", left, _whole(0))):
            mask = w.first(left)
            value = w.load_first(builder.add(source, offset), mask)
            w.store_first(value, builder.add(target, offset), mask)
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 3), write
