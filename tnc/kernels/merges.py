"""Which cores of a network are merged into one operand ahead of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from tnc.kernels.program import extent
from tnc.net import Axis, Network

PARTED, MERGED = 5, 4
"""Up to PARTED cores are merged in all ways; of more, up to MERGED at once, and all of them."""
GROWTH, SHARE = 4.0, 0.25
"""A merged operand has at most GROWTH times the entries of its cores, or SHARE of the dense."""

Piece = tuple[str, tuple[str, ...], Axis]
"""Name, cores and legs of an operand whose order in memory is still free."""


def groupings(network: Network) -> Iterator[tuple[Piece, ...]]:
    """Yield ways to merge cores that hang together.

    Of up to PARTED cores none is merged first, so that plain chains are there to be chosen; of
    more, ways that leave few operands come first: their cost bounds the long search of the others.
    """
    equation = network.equation
    outer = {*equation.input_indices, *equation.output_indices}
    cores = [(_named((core.name,)), (core.name,), core.indices) for core in equation.cores]
    for groups in _partitions(cores) if len(cores) <= PARTED else _single_merges(cores):
        if len(groups) == 1 < len(cores) and equation.shared:
            continue
        pieces = []
        for group in groups:
            if len(group) == 1:
                pieces.append(group[0])
                continue
            rest = [piece for piece in cores if piece not in group]
            piece = _merged(group, rest, outer)
            before = sum(extent(legs, network.size) for _, _, legs in group)
            most = max(GROWTH * before, SHARE * network.signature.parameters)
            if not _joined(group) or (len(groups) > 1 and extent(piece[2], network.size) > most):
                break
            pieces.append(piece)
        else:
            yield tuple(pieces)


def _partitions(cores: Sequence[Piece]) -> Iterator[tuple[tuple[Piece, ...], ...]]:
    """Yield all partitions, those into many groups first."""
    found: list[list[tuple[Piece, ...]]] = [[]]
    for core in cores:
        found = [
            [*groups[:place], (*groups[place], core), *groups[place + 1 :]]
            if place < len(groups)
            else [*groups, (core,)]
            for groups in found
            for place in range(len(groups) + 1)
        ]
    yield from sorted(map(tuple, found), key=len, reverse=True)


def _single_merges(cores: Sequence[Piece]) -> Iterator[tuple[tuple[Piece, ...], ...]]:
    """Yield all cores merged, then up to MERGED of them, then no merge."""
    yield (tuple(cores),)
    for count in range(MERGED, 1, -1):
        for chosen in combinations(cores, count):
            yield (*((core,) for core in cores if core not in chosen), chosen)
    yield tuple((core,) for core in cores)


def _joined(pieces: Sequence[Piece]) -> bool:
    """Whether pieces hang together by legs."""
    reached, rest = set(pieces[0][2]), list(pieces[1:])
    while rest:
        near = [piece for piece in rest if reached & set(piece[2])]
        if not near:
            return False
        for piece in near:
            reached |= set(piece[2])
            rest.remove(piece)
    return True


def _merged(chosen: Sequence[Piece], rest: Sequence[Piece], outer: set[str]) -> Piece:
    needed = outer.union(*(legs for _, _, legs in rest))
    legs = dict.fromkeys(name for _, _, axis in chosen for name in axis)
    names = tuple(name for _, cores, _ in chosen for name in cores)
    return _named(names), names, tuple(name for name in legs if name in needed)


def _named(cores: Sequence[str]) -> str:
    """Name an operand so that it is no name of the emitted code, which are all lower-case."""
    name = "_".join(cores)
    return name if name[0].isupper() else "C" + name
