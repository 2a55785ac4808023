"""Split a model dimension into balanced factors, with padding where its primes are too large."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import log, prod

_EVEN = 2.5  # an exact split whose largest factor is at most this times the smallest is kept
_PADDING = 1.06  # otherwise up to six percent of padding buys a more even split


@lru_cache(maxsize=4096)
def factorise(size: int, parts: int) -> tuple[int, ...]:
    """Return `parts` factors, ascending, whose product is `size` or slightly more.

    An exact split is kept where it is even enough. Else, of all products up to 6 % above, the one
    with the least spread is taken, weighed by what its padding costs.

    >>> factorise(768, 2), factorise(768, 3), factorise(30522, 2), factorise(7, 1), factorise(3, 2)
    ((24, 32), (8, 8, 12), (175, 175), (7,), (1, 3))
    """
    if parts == 1:
        return (size,)
    exact = _split(size, parts)
    if exact[-1] <= _EVEN * exact[0]:
        return exact
    best, badness = exact, exact[-1] / exact[0]
    for padded in range(size + 1, max(size + 1, int(size * _PADDING)) + 1):
        split = _split(padded, parts)
        spread = (split[-1] / split[0]) * (padded / size) ** 8
        if spread < badness - 1e-12:
            best, badness = split, spread
    return best


@lru_cache(maxsize=4096)
def factorise_by(size: int, shares: tuple[float, ...]) -> tuple[int, ...]:
    """Return one factor for each share, near `size ** share`, with product `size` or slightly more.

    Of all products up to 6 % above, the one whose factors are nearest in logarithm is taken,
    weighed by what its padding costs; equal shares are split as `factorise` does.

    >>> factorise_by(768, (0.75, 0.25)), factorise_by(7, (0.5, 0.5)), factorise_by(12, (1.0,))
    ((128, 6), (2, 4), (12,))
    """
    if len(set(shares)) == 1:
        return factorise(size, len(shares))
    wanted = [share * log(size) for share in shares]
    best, badness = (size,) + (1,) * (len(shares) - 1), float("inf")
    for padded in range(size, int(size * _PADDING) + 1):
        for split in _ordered(padded, len(shares)):
            off = sum((log(part) - want) ** 2 for part, want in zip(split, wanted))
            worse = (1 + off) * (padded / size) ** 16
            if worse < badness - 1e-12:
                best, badness = split, worse
    return best


def _ordered(size: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield every ordered exact factorisation."""
    if parts == 1:
        yield (size,)
        return
    for first in (d for d in range(1, size + 1) if size % d == 0):
        for rest in _ordered(size // first, parts - 1):
            yield (first, *rest)


def _split(size: int, parts: int) -> tuple[int, ...]:
    """Return the most even exact factorisation."""
    if parts == 1:
        return (size,)
    best: tuple[int, ...] = (1,) * (parts - 1) + (size,)
    for first in range(max(1, round(size ** (1 / parts))), 0, -1):
        if size % first == 0:
            found = tuple(sorted((first, *_split(size // first, parts - 1))))
            if found[-1] / found[0] < best[-1] / best[0]:
                best = found
            if parts == 2:
                break
    assert prod(best) == size
    return best
