"""Networks of random cores, and how large a set of tensors they reach: oracles of topologies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tnc.explore import Topology

Bonds = Sequence[tuple[int, int, int]]


def random_cores(modes: Sequence[int], bonds: Bonds, hidden: int = 0, seed: int = 0) -> list[Any]:
    """Return normal cores, one a vertex: its mode if it has one, then its bonds in order."""
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((*modes[v : v + 1], *(size for a, b, size in bonds if v in (a, b))))
        for v in range(len(modes) + hidden)
    ]


def contracted(cores: Sequence[Any], modes: Sequence[int], bonds: Bonds, skip: int = -1) -> Any:
    """Return the tensor, or with `skip` what multiplies that core: its bonds, then other modes."""
    count = len(modes)
    legs = [[k for k, (a, b, _) in enumerate(bonds) if v in (a, b)] for v in range(len(cores))]
    operands: list[Any] = [np.ones(()), []]
    for v, core in enumerate(cores):
        if v != skip:
            operands += [core, [*([v] if v < count else []), *(count + k for k in legs[v])]]
    outer = [count + k for k in legs[skip]] if skip >= 0 else []
    return np.einsum(*operands, [*outer, *(k for k in range(count) if k != skip)], optimize=True)


def tensor_of(topology: Topology, seed: int = 0) -> Any:
    """Return a random tensor that a topology represents exactly."""
    cores = random_cores(topology.modes, topology.bonds, topology.hidden, seed)
    return contracted(cores, topology.modes, topology.bonds)


def dimension(modes: Sequence[int], bonds: Bonds, hidden: int = 0) -> int:
    """Return the dimension of the set of tensors that a network reaches.

    It is the rank of the derivative by all cores at random ones. A set of networks inside another
    has the same closure, hence the same least errors, if it has the same dimension: both are
    images of all cores, which is irreducible.
    """
    cores = random_cores(modes, bonds, hidden, seed=1)
    rows = []
    for v in range(len(cores)):
        rest = contracted(cores, modes, bonds, skip=v)
        if v < len(modes):
            flat = rest.reshape(-1, *(size for k, size in enumerate(modes) if k != v))
            each = np.stack(
                [
                    np.stack([flat if k == m else 0 * flat for k in range(modes[v])], axis=v + 1)
                    for m in range(modes[v])
                ]
            )
        else:
            each = rest
        rows.append(each.reshape(-1, int(np.prod(modes))))
    return int(np.linalg.matrix_rank(np.concatenate(rows)))


@st.composite
def graphs(draw: Any, most: int = 4, hidden: int = 2, rank: int = 5) -> Any:
    """Draw modes, bonds of any size between some of the vertices, and how many have no mode."""
    modes = tuple(draw(st.lists(st.integers(2, 3), min_size=2, max_size=most)))
    inner = draw(st.integers(0, hidden))
    count = len(modes) + inner
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, min_size=1, max_size=6))
    bonds = tuple((a, b, draw(st.integers(1, rank))) for a, b in chosen)
    return modes, bonds, inner
