"""Cores carried to another topology: nothing that fits is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.explore.networks import graphs, random_cores, tensor_of
from tnc.explore import Space, Topology
from tnc.explore.carrying import carried
from tnc.explore.evaluator import rse

FULL = Space.of((3, 4, 3, 4), "full", 4)


@given(st.tuples(*[st.integers(1, 4)] * 6), st.tuples(*[st.integers(0, 2)] * 6))
def test_a_network_inside_another_is_carried_exactly(ranks: Any, more: Any) -> None:
    old = FULL.topology(ranks)
    new = FULL.topology(tuple(min(rank + by, 4) for rank, by in zip(ranks, more)))
    tensor = tensor_of(old)
    cores = tuple(random_cores(old.modes, old.bonds))
    assert rse(tensor, carried(cores, old, new, seed=0, noise=0.0), new) < 1e-24


@given(graphs(), st.integers(0, 5), st.data())
def test_shapes_are_those_of_the_new_network(graph: Any, seed: int, data: Any) -> None:
    old = Topology.of(*graph)
    _, bonds, _ = data.draw(graphs(most=len(old.modes)))
    inside = [bond for bond in bonds if max(bond[:2]) < len(old.modes)]
    new = Topology.of(old.modes, inside)
    back = Topology.of(*graph)
    cores = tuple(random_cores(old.modes, old.bonds, old.hidden))
    there = carried(cores, old, new, seed)
    again = carried(there, new, back, seed)
    assert [core.shape for core in there] == list(new.shapes)
    assert [core.shape for core in again] == list(back.shapes)
    assert all(np.isfinite(core).all() for core in (*there, *again))


def test_narrower_bonds_keep_the_leading_entries() -> None:
    old = Topology.of((4, 4), [(0, 1, 3)])
    new = Topology.of((4, 4), [(0, 1, 2)])
    left, values, right = np.linalg.svd(np.random.default_rng(0).standard_normal((4, 4)))
    cores = (left[:, :3] * values[:3], right[:3].T)
    cut = carried(cores, old, new, seed=0)
    best = (left[:, :2] * values[:2]) @ right[:2]
    assert np.allclose(cut[0] @ cut[1].T, best)


def test_what_is_new_is_noise_not_zeros_and_depends_on_the_seed_alone() -> None:
    old, new = Topology.of((4, 4), [(0, 1, 1)]), Topology.of((4, 4), [(0, 1, 3)])
    cores = tuple(random_cores(old.modes, old.bonds))
    first, same, other = (carried(cores, old, new, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, same))
    assert np.count_nonzero(first[0]) == 12
    assert not np.array_equal(first[0], other[0])
    assert np.array_equal(first[0][:, 0], cores[0])


@pytest.mark.parametrize("third", [2, 3])
def test_a_vertex_in_the_middle_of_an_old_bond_begins_as_an_identity(third: int) -> None:
    old = Topology.of((3, 4, 3), [(0, 1, 2)])
    new = Topology.of((3, 4, 3), [(0, 3, 3), (1, 3, 2), (2, 3, third)], 1)
    tensor = tensor_of(old)
    cores = tuple(random_cores(old.modes, old.bonds))
    assert rse(tensor, carried(cores, old, new, seed=0, noise=0.0), new) < 1e-24


def test_a_wrong_start_would_be_seen() -> None:
    old, new = FULL.topology((2,) * 6), FULL.topology((3,) * 6)
    tensor = tensor_of(old)
    cores = tuple(random_cores(old.modes, old.bonds, seed=5))
    assert rse(tensor, carried(cores, old, new, seed=0, noise=0.0), new) > 0.1
