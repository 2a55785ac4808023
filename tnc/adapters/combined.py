"""A weight with what several deltas add to it, each times its share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tnc.adapters.delta import Delta

Using = Sequence[tuple[Delta, float]]
"""The deltas of one weight with their shares."""


def based(using: Using, weight: Tensor) -> Tensor:
    """Return what stands for a weight: itself, unless a delta's method has its own.

    `W + sum_k s_k (W_k - W)` over the deltas with weights W_k of their own and shares s_k, so that
    what an adapter changes, its base included, is counted by its share.
    """
    total = weight
    for delta, share in using:
        own = delta.method.base(delta, weight)
        if own is not weight:
            plain = share == 1.0 and total is weight
            total = own if plain else total + (own - weight) * share
    return total


def changed(using: Using, weight: Tensor) -> Tensor:
    """Return a weight, in its stored layout and type, with what the deltas add to it."""
    total = weight = based(using, weight)
    for delta, share in using:
        change = delta.method.change(delta, weight)
        total = total + (change if share == 1.0 else change * share).to(weight.dtype)
    return total
