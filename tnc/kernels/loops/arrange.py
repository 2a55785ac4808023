"""The loops of a copy, arranged so that what runs innermost lies one after another in memory."""

from __future__ import annotations

from collections.abc import Sequence

ITEMS, ROWS, BLOCKS = range(3)
LOOPS = 5

Strided = tuple[int, int, int]
"""A loop: how often, its strides of the result and of the source, in items."""


def arranged(loops: Sequence[Strided]) -> tuple[int, ...] | None:
    """Return a copy's kind and its loops as `moves` reads them; None where they are too many.

    The last loop is along the result's items. Where the source's lie along another one, that is the
    one before it, and both are taken a block at a time.
    """
    found = _joined([loop for loop in loops if loop[0] != 1])
    if len(found) > LOOPS:
        return None
    found.sort(key=lambda loop: -loop[1])
    kind = ITEMS
    if found and found[-1][1] == 1:
        along = next((loop for loop in reversed(found) if loop[2] == 1), None)
        if along == found[-1]:
            kind = ROWS
            _source_first(found)
        elif along is not None:
            kind = BLOCKS
            found.remove(along)
            found.insert(len(found) - 1, along)
    padded = [(1, 0, 0)] * (LOOPS - len(found)) + found
    return (kind, *(number for loop in padded for number in loop))


def _source_first(found: list[Strided]) -> None:
    """Bring the loop over rows that are neighbours in the source before the last but one."""
    rows = found[:-1]
    if len(rows) > 1:
        near = min(rows, key=lambda loop: loop[2])
        found.remove(near)
        found.insert(len(found) - (1 if near == rows[-1] else 2), near)


def _joined(loops: Sequence[Strided]) -> list[Strided]:
    """Join loops that go on where the next one inside of them ends, in result and source."""
    found: list[Strided] = []
    for count, result, source in sorted(loops, key=lambda loop: -loop[1]):
        if found:
            before, outer, origin = found[-1]
            if (outer, origin) == (count * result, count * source):
                found[-1] = (before * count, result, source)
                continue
        found.append((count, result, source))
    return found
