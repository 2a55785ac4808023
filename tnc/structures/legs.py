"""What families ask of a signature: its kernel modes, its groups, and whether it is one map."""

from __future__ import annotations

from math import gcd
from typing import Literal

from tnc.net import Signature
from tnc.structures.factorise import factorise

Count = int | Literal["auto"]
"""A number of groups or blocks, or 'auto': the plan compares several."""

_TAPS = ("d", "h", "w")
_WANTED = (1, 2, 4, 8)


def kernel_legs(signature: Signature) -> dict[str, int]:
    """Return names and sizes of the kernel modes of a convolution, in order; empty without.

    >>> kernel_legs(Signature((8,), (6, 3, 5)))
    {'h': 3, 'w': 5}
    """
    kernel = signature.inputs[1:]
    return dict(zip(_TAPS[len(_TAPS) - len(kernel) :], kernel))


def one_map(signature: Signature) -> str:
    """Say why a weight is not one map from an input axis and kernel modes to one output axis."""
    if len(signature.outputs) != 1:
        return f"it has {len(signature.outputs)} output axes ({signature}), not one"
    if len(signature.inputs) > 1 + len(_TAPS):
        return f"it has {len(signature.inputs) - 1} kernel modes, at most {len(_TAPS)} are known"
    return ""


def some_divisors(size: int, least: int) -> tuple[int, ...]:
    """Return a few divisors of a size to compare: those nearest to 1, 2, 4 and 8.

    >>> some_divisors(384, 1), some_divisors(25, 2), some_divisors(7, 2)
    ((1, 2, 4, 8), (5,), (7,))
    """
    known = [d for d in range(least, min(size, 2 * _WANTED[-1]) + 1) if size % d == 0]
    nearest = [min(known, key=lambda d: abs(d - want)) for want in _WANTED if known]
    return tuple(sorted(set(nearest))) or (min(size, least),)


def block_counts(signature: Signature) -> tuple[int, ...]:
    """Return common divisors of both sides to compare; two blocks with padding without any."""
    (o,), i = signature.outputs, signature.inputs[0]
    common = gcd(o, i)
    return some_divisors(common, 2) if common > 1 else (min(2, o, i),)


def refuses_blocks(blocks: Count, signature: Signature, told: str) -> str:
    """Say why a weight cannot be cut into so many blocks a side; `told` is how they are named."""
    if isinstance(blocks, int) and blocks < 1:
        return f"blocks is {blocks}, it must be 1 or more"
    reason = one_map(signature)
    if reason:
        return reason
    if isinstance(blocks, int) and blocks > min(signature.outputs[0], signature.inputs[0]):
        return f"{told} blocks in a weight of {signature}"
    return ""


def split(size: int, side: str, parts: int) -> dict[str, int]:
    """Return names and sizes of the legs of one side: `o1 o2 ..`, or bare `o` for one part.

    >>> split(12, "i", 2)
    {'i1': 3, 'i2': 4}
    """
    names = [side] if parts == 1 else [f"{side}{k + 1}" for k in range(parts)]
    return dict(zip(names, factorise(size, parts)))
