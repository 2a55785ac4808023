"""Cores of one topology as a start for another: cut where bonds are narrower, widened elsewhere."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np

from tnc.explore.topology import Topology

Array = np.ndarray[Any, np.dtype[np.float64]]
Held = dict[int, tuple[Array, list[int]]]
"""By vertex: a core and, for each of its legs after the mode, the vertex at the other end."""


def carried(
    cores: tuple[Array, ...], old: Topology, new: Topology, seed: int, noise: float = 0.1
) -> tuple[Array, ...]:
    """Return cores of `new.shapes` that hold as much of the network `old` as fits.

    Every bond is first turned so that its leading entries hold most of the product of its two
    cores (singular value decomposition), and legs keep their leading entries. Where a bond is new
    or wider, the entries are normal with a standard deviation of `noise` times the core's root mean
    square, since alternating solves never leave zeros. Vertices without modes are matched by the
    bonds that they share, and one that stands in the middle of an old bond begins as an identity.
    `old` and `new` share modes.
    """
    rng = np.random.default_rng(seed)
    held = _matched(turned(cores, old), old, new)
    return tuple(_resized(held.get(v), v, new, rng, noise) for v in range(len(new.shapes)))


def turned(cores: tuple[Array, ...], old: Topology) -> tuple[Array, ...]:
    """Return cores of the same tensor whose bonds are in the order of what their entries hold."""
    turned = list(cores)
    for number, (*ends, size) in enumerate(old.bonds):
        places = [cores[v].ndim - len(old.legs[v]) + old.legs[v].index(number) for v in ends]
        parts = [np.moveaxis(turned[v], place, -1) for v, place in zip(ends, places)]
        (left, inner), (right, outer) = (np.linalg.qr(part.reshape(-1, size)) for part in parts)
        u, values, v = np.linalg.svd(inner @ outer.T, full_matrices=False)
        root = np.sqrt(values)
        for end, place, part, side in zip(
            ends, places, parts, (left @ (u * root), right @ (v.T * root))
        ):
            wide = np.zeros((side.shape[0], size))
            wide[:, : side.shape[1]] = side
            turned[end] = np.moveaxis(wide.reshape(part.shape), -1, place)
    return tuple(turned)


def _matched(cores: tuple[Array, ...], old: Topology, new: Topology) -> Held:
    """Return the old cores by vertices of `new`; old vertices without a place there are cut off."""
    order, wanted = len(new.modes), {(a, b) for a, b, _ in new.bonds}
    more = range(order, order + max(old.hidden, new.hidden))
    names = max(
        (dict(enumerate((*range(order), *inner))) for inner in permutations(more, old.hidden)),
        key=lambda name: sum(_pair(name[a], name[b]) in wanted for a, b, _ in old.bonds),
    )
    held: Held = {}
    for v, (core, legs) in enumerate(zip(cores, old.legs)):
        ends = [sum(old.bonds[k][:2]) - v for k in legs]
        held[names[v]] = (core, [names[end] for end in ends])
    for v in range(order, order + new.hidden):
        if v not in held:
            _put_between(held, v, {sum(new.bonds[k][:2]) - v for k in new.legs[v]}, wanted)
    return held


def _put_between(held: Held, v: int, ends: set[int], wanted: set[tuple[int, int]]) -> None:
    """Put an identity at `v` on an old bond between two of its neighbours that is gone in new."""
    for a in sorted(ends & held.keys()):
        for b in held[a][1]:
            if b in ends and _pair(a, b) not in wanted:
                size = held[a][0].shape[held[a][0].ndim - len(held[a][1]) + held[a][1].index(b)]
                held[v] = (np.eye(size), [a, b])
                for end, other in ((a, b), (b, a)):
                    core, legs = held[end]
                    held[end] = (core, [v if leg == other else leg for leg in legs])
                return


def _resized(
    held: tuple[Array, list[int]] | None, v: int, new: Topology, rng: Any, noise: float
) -> Array:
    """Return the core at `v` with the legs and sizes of `new`."""
    ends = [sum(new.bonds[k][:2]) - v for k in new.legs[v]]
    shape = new.shapes[v]
    if held is None:
        core, legs = np.ones((1,) * len(shape)), list(ends)
    else:
        core, legs = held
    modes = core.ndim - len(legs)
    gone = tuple(0 if end not in ends else slice(None) for end in legs)
    core = core[(slice(None),) * modes + gone]
    kept = [end for end in legs if end in ends]
    order = sorted(range(len(kept)), key=lambda k: ends.index(kept[k]))
    core = core.transpose(*range(modes), *(modes + k for k in order))
    core = core[
        (slice(None),) * modes + tuple(slice(None) if end in kept else None for end in ends)
    ]
    scale = float(np.sqrt(np.square(core).mean())) * noise
    grown: Array = rng.standard_normal(shape) * scale
    part = tuple(slice(min(have, want)) for have, want in zip(core.shape, shape))
    grown[part] = core[part]
    return grown


def _pair(a: int, b: int) -> tuple[int, int]:
    return (min(a, b), max(a, b))
