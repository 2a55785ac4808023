"""The innermost loops, written as LLVM instructions over vectors.

Addresses and strides are bytes. `like` is any number of the item type. Vectors that reach over the
last column are masked, so nothing is read or written beyond it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

BYTES = 64 if binding.get_host_cpu_features().get("avx512f") else 32
"""Bytes of a vector."""
CHAINS = 8
"""So many sums are under way at a time, as one multiply-add waits for the last on its sum."""
_INT = ir.IntType(64)


def _whole(value: int) -> Any:
    return ir.Constant(_INT, value)


class _Vectors:
    """Writes vector instructions of one item type."""

    def __init__(self, builder: Any, item: Any) -> None:
        self.builder, self.item = builder, item
        self.size = 4 if isinstance(item, ir.FloatType) else 8
        self.lanes = BYTES // self.size
        self.vector = ir.VectorType(item, self.lanes)
        self.suffix = f"v{self.lanes}f{8 * self.size}"
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [each.type for each in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def _at(self, address: Any) -> Any:
        return self.builder.inttoptr(address, self.vector.as_pointer())

    def load(self, address: Any, mask: Any = None) -> Any:
        if mask is None:
            return self.builder.load(self._at(address), align=self.size)
        name = f"llvm.masked.load.{self.suffix}.p0"
        align = ir.Constant(ir.IntType(32), self.size)
        return self._call(name, self.vector, self._at(address), align, mask, self.zero)

    def store(self, value: Any, address: Any, mask: Any) -> None:
        name = f"llvm.masked.store.{self.suffix}.p0"
        align = ir.Constant(ir.IntType(32), self.size)
        self._call(name, ir.VoidType(), value, self._at(address), align, mask)

    def store_item(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.builder.inttoptr(address, self.item.as_pointer()))

    def item_everywhere(self, address: Any) -> Any:
        place = self.builder.inttoptr(address, self.item.as_pointer())
        return self._everywhere(self.builder.load(place, align=self.size), self.vector)

    def _everywhere(self, value: Any, vector: Any) -> Any:
        nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        order = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
        one = self.builder.insert_element(nothing, value, first)
        return self.builder.shuffle_vector(one, nothing, order)

    def masks(self, width: Any, vectors: int) -> list[Any]:
        """Return which lanes of each vector are among the first `width` items."""
        places = ir.VectorType(_INT, self.lanes)
        most = self._everywhere(width, places)
        starts = range(0, vectors * self.lanes, self.lanes)
        return [
            self.builder.icmp_signed("<", ir.Constant(places, list(range(s, s + self.lanes))), most)
            for s in starts
        ]

    def sums(self, rows: int, vectors: int) -> list[list[Any]]:
        """Return places for sums, 0 at first; LLVM keeps them in registers."""
        return [
            [cgutils.alloca_once_value(self.builder, self.zero) for _ in range(vectors)]
            for _ in range(rows)
        ]

    def accumulate(self, place: Any, one: Any, other: Any) -> None:
        found = self._call(
            f"llvm.fma.{self.suffix}", self.vector, one, other, self.builder.load(place)
        )
        self.builder.store(found, place)

    def total(self, places: list[Any]) -> Any:
        """Return the sum of all lanes of all places."""
        first = self.added(places)
        name, start = f"llvm.vector.reduce.fadd.{self.suffix}", ir.Constant(self.item, 0.0)
        kind = ir.FunctionType(self.item, [self.item, self.vector])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [start, first], fastmath=("reassoc",))

    def added(self, places: list[Any]) -> Any:
        first, *rest = (self.builder.load(place) for place in places)
        for each in rest:
            first = self.builder.fadd(first, each)
        return first

    def terms(self, count: Any, sums: list[Any], term: Callable[[Any, Any], None]) -> None:
        """Write a sum's loop, with as many terms at a time as there are `sums`."""
        together = len(sums)
        whole = self.builder.sdiv(count, _whole(together))
        done = self.builder.mul(whole, _whole(together))
        with cgutils.for_range(self.builder, whole) as loop:
            first = self.builder.mul(loop.index, _whole(together))
            for place, each in enumerate(sums):
                term(self.builder.add(first, _whole(place)), each)
        if together > 1:
            with cgutils.for_range(self.builder, self.builder.sub(count, done)) as loop:
                term(self.builder.add(done, loop.index), sums[0])

    def along(self, address: Any, stride: Any, count: Any) -> Any:
        """Return `address + count * stride`."""
        count = _whole(count) if isinstance(count, int) else count
        return self.builder.add(address, self.builder.mul(stride, count))

    def vectors_on(self, address: Any, count: int) -> Any:
        return self.builder.add(address, _whole(count * BYTES))


def tile(rows: int, vectors: int) -> Any:
    """Make `c[r, :width] = sum over k of s[r, k] * v[k, :width]`; width up to `vectors` vectors.

    Strides: `vk` of v, `cr` of c, `sr` and `sk` of s.
    """

    @intrinsic
    def made(typing, like, c, v, s, k, vk, cr, sr, sk, width):
        def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            like, c, v, s, k, vk, cr, sr, sk, width = arguments
            w = _Vectors(builder, like.type)
            masks, together = w.masks(width, vectors), max(1, CHAINS // (rows * vectors))
            sums = [w.sums(rows, vectors) for _ in range(together)]

            def term(place: Any, sums: Any) -> None:
                row, column = w.along(v, vk, place), w.along(s, sk, place)
                taken = [w.load(w.vectors_on(row, j), mask) for j, mask in enumerate(masks)]
                for r in range(rows):
                    factor = w.item_everywhere(w.along(column, sr, r))
                    for j in range(vectors):
                        w.accumulate(sums[r][j], factor, taken[j])

            w.terms(k, sums, term)
            for r in range(rows):
                for j, mask in enumerate(masks):
                    place = w.vectors_on(w.along(c, cr, r), j)
                    w.store(w.added([each[r][j] for each in sums]), place, mask)
            return context.get_dummy_value()

        return types.void(like, *[types.intp] * 9), write

    return made


def dot(columns: int, vectors: int) -> Any:
    """Make `c[j] = sum over k of v[j, k] * s[k]`, k contiguous, `vectors` vectors at a time.

    Strides: `cj` of c, `vj` of v.
    """

    @intrinsic
    def made(typing, like, c, v, s, k, cj, vj):
        def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            like, c, v, s, k, cj, vj = arguments
            w = _Vectors(builder, like.type)
            sums, step = w.sums(columns, vectors), vectors * w.lanes

            def terms(offset: Any, masks: list[Any]) -> None:
                for j, mask in enumerate(masks):
                    ahead = w.vectors_on(offset, j)
                    factor = w.load(builder.add(s, ahead), mask)
                    for r in range(columns):
                        row = w.along(v, vj, r)
                        w.accumulate(sums[r][j], factor, w.load(builder.add(row, ahead), mask))

            blocks = builder.sdiv(k, _whole(step))
            with cgutils.for_range(builder, blocks) as loop:
                terms(builder.mul(loop.index, _whole(vectors * BYTES)), [None] * vectors)
            done = builder.mul(blocks, _whole(step))
            left = w.masks(builder.sub(k, done), vectors)
            terms(builder.mul(done, _whole(w.size)), left)
            for r in range(columns):
                w.store_item(w.total(sums[r]), w.along(c, cj, r))
            return context.get_dummy_value()

        return types.void(like, *[types.intp] * 6), write

    return made


def pairs(vectors: int) -> Any:
    """Make `c[:width] = sum over k of v[k, :width] * s[k, :width]`; strides `vk` and `sk`."""

    @intrinsic
    def made(typing, like, c, v, s, k, vk, sk, width):
        def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            like, c, v, s, k, vk, sk, width = arguments
            w = _Vectors(builder, like.type)
            masks, together = w.masks(width, vectors), max(1, CHAINS // vectors)
            sums = [w.sums(1, vectors)[0] for _ in range(together)]

            def term(place: Any, sums: Any) -> None:
                one, other = w.along(v, vk, place), w.along(s, sk, place)
                for j, mask in enumerate(masks):
                    factors = [w.load(w.vectors_on(each, j), mask) for each in (one, other)]
                    w.accumulate(sums[j], *factors)

            w.terms(k, sums, term)
            for j, mask in enumerate(masks):
                w.store(w.added([each[j] for each in sums]), w.vectors_on(c, j), mask)
            return context.get_dummy_value()

        return types.void(like, *[types.intp] * 7), write

    return made


@intrinsic
def word(typing, address):
    """Return the 64-bit integer at an address."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], _INT.as_pointer()))

    return types.intp(types.intp), write


@intrinsic
def item_size(typing, like):
    """Return the bytes of an item."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _whole(like.bitwidth // 8)

    return types.intp(like), write


@intrinsic
def move(typing, like, target, source):
    """Copy one item."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type.as_pointer()
        value = builder.load(builder.inttoptr(arguments[2], kind))
        builder.store(value, builder.inttoptr(arguments[1], kind))
        return context.get_dummy_value()

    return types.void(like, types.intp, types.intp), write


@intrinsic
def add(typing, like, target, source):
    """Add one item to another."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type.as_pointer()
        target, source = (builder.inttoptr(each, kind) for each in arguments[1:])
        builder.store(builder.fadd(builder.load(target), builder.load(source)), target)
        return context.get_dummy_value()

    return types.void(like, types.intp, types.intp), write
