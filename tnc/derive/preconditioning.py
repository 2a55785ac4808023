"""Contractions of preconditioners: Gram matrices of a tensor's modes, and their products with it.

A tensor of order k has a Gram matrix for each mode, `ijk,Ijk->iI`; a preconditioner multiplies a
matrix onto each mode, `ijk,iI,jJ,kK->IJK`. Both are copies and ties, as transport is, and find
their order where the layers do. A leading `block` index runs over blocks of equal sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tnc.derive.contraction import Contraction

TENSOR, BLOCK = "tensor", "block"


def mode_gram(sizes: Sequence[int], mode: int) -> Contraction:
    """Return `G_(mode) G_(mode)^T` for each block of a tensor, from two copies of the tensor.

    `sizes` are the number of blocks, then those of the modes.

    >>> found = mode_gram((4, 2, 3), 1)
    >>> found.operands[1], found.output
    (('block', 'm0', "m1'"), ('block', 'm1', "m1'"))
    """
    legs = _legs(sizes)
    second = tuple(leg + "'" if place == mode else leg for place, leg in enumerate(legs))
    return Contraction(
        (TENSOR, "second:" + TENSOR),
        ((BLOCK, *legs), (BLOCK, *second)),
        (BLOCK, legs[mode], second[mode]),
        _sizes(sizes),
    )


def on_modes(sizes: Sequence[int], modes: Sequence[int]) -> Contraction:
    """Return the product of a tensor with a matrix `[old, new]` on each of some modes.

    `sizes` as in `mode_gram`; the operands are the tensor, then the matrices in the order of
    `modes`.

    >>> on_modes((4, 2, 3), (0,)).operands
    (('block', 'm0', 'm1'), ('block', 'm0', "m0'"))
    """
    legs = _legs(sizes)
    wanted = tuple(leg + "'" if place in modes else leg for place, leg in enumerate(legs))
    matrices = [(BLOCK, legs[mode], wanted[mode]) for mode in modes]
    return Contraction(
        (TENSOR, *(f"matrix:{mode}" for mode in modes)),
        ((BLOCK, *legs), *matrices),
        (BLOCK, *wanted),
        _sizes(sizes),
    )


def _legs(sizes: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"m{place}" for place in range(len(sizes) - 1))


def _sizes(sizes: Sequence[int]) -> tuple[tuple[str, int], ...]:
    found = {BLOCK: sizes[0]}
    for place, size in enumerate(sizes[1:]):
        found[f"m{place}"] = found[f"m{place}'"] = size
    return tuple(sorted(found.items()))
