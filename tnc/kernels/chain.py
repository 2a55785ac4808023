"""Programs as chains: rows pass through all products a tile at a time, and nothing between is kept.

Of a value between two products only the legs that the next product sums, and that the last one
brought, make the columns of its tile. Its other legs are walked one entry at a time: legs of the
output by a grid of programs, legs that are summed later by loops around whatever makes the tile. A
copy in between says nothing here, as no such value lies in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tnc.derive.dense import ROWS
from tnc.kernels.layouts import long_legs
from tnc.kernels.program import Multiply, Program, extent, product_flops
from tnc.net import Axis

LEAST = 16
"""The smallest side of a tile that matrix units take."""
WIDEST = 128
"""The most columns of a tile between two products; of the last one so many at a time."""
DEEP = 32
"""Entries that the first product sums at a time."""
WORK = 4.0
"""The most multiply-adds, padding and repetition counted, by those of the products themselves."""


@dataclass(frozen=True)
class Link:
    """One product: the legs that it sums in tiles, those that it sums in a loop, and its columns.

    The first product sums tiles of the input, every other one the columns of the one before.
    """

    step: Multiply
    summed: Axis
    looped: Axis
    columns: Axis


@dataclass(frozen=True)
class Chain:
    """The products in order, and the legs of the output that a grid walks."""

    links: tuple[Link, ...]
    grid: Axis

    @property
    def resident(self) -> bool:
        """Whether the last but one value serves all columns of the output."""
        return not self.links[-1].looped


def chain_of(program: Program) -> Chain:
    """Return the chain of a program. Raises ValueError, with the reason, where it is none."""
    size = dict(program.sizes) | {ROWS: 2}
    steps = program.products
    if len(steps) < 2:
        raise ValueError("it has one product, which the library takes as well")
    summed = [_legs(_summed(step), step, size) for step in steps]
    brought = [_legs(_brought(step), step, size) for step in steps]
    links: list[Link] = []
    for place, step in enumerate(steps):
        before = links[-1].columns if links else ()
        last = place == len(steps) - 1
        following = brought[place] if last else summed[place + 1]
        columns = tuple(name for name in brought[place] if name in following)
        if not last and extent(columns, size) > WIDEST:
            raise ValueError(
                f"{extent(columns, size)} columns between two products, {WIDEST} are the most"
            )
        tiled = before if links else summed[0]
        looped = tuple(name for name in summed[place] if name not in tiled)
        links.append(Link(step, tiled, looped, columns))
    outputs = long_legs(program.output, size)
    grid = tuple(name for name in outputs if name != ROWS and name not in links[-1].columns)
    found = Chain(tuple(links), grid)
    if extent(grid, size) > 65_535:
        raise ValueError("its grid has more programs than a device takes")
    ratio = _work(found, size) / sum(product_flops(step, size) for step in steps)
    if ratio > WORK:
        raise ValueError(
            f"it would take {ratio:.1f} times the multiply-adds, {WORK:g} are the most"
        )
    return found


def padded(count: int) -> int:
    """Return the side of a tile that holds so many entries: a power of two."""
    return max(LEAST, 1 << (count - 1).bit_length())


def _work(chain: Chain, size: Mapping[str, int]) -> float:
    """Count FLOPs for two rows, with padding and with what is computed more than once."""
    last = extent(chain.links[-1].columns, size)
    repeated = extent(chain.grid, size)
    if not chain.resident:
        repeated *= -(-last // WIDEST)
    total = 0.0
    for link in reversed(chain.links):
        repeated *= extent(link.looped, size)
        deep = extent(link.summed, size)
        deep = -(-deep // DEEP) * DEEP if link is chain.links[0] else padded(deep)
        final = link is chain.links[-1]
        wide = min(padded(last), WIDEST) if final and not chain.resident else padded(
            extent(link.columns, size))  # fmt: skip
        total += 2 * size[ROWS] * repeated * deep * wide
    return total


def _summed(step: Multiply) -> frozenset[str]:
    left, right = set(step.left.layout), set(step.right.layout)
    return frozenset((left & right) - set(step.result.layout))


def _brought(step: Multiply) -> frozenset[str]:
    return frozenset(set(step.right.layout) - set(step.left.layout))


def _legs(names: frozenset[str], step: Multiply, size: Mapping[str, int]) -> Axis:
    """Return legs in the order of the operand's memory, without those of size 1."""
    return tuple(name for name in long_legs(step.right.layout, size) if name in names)
