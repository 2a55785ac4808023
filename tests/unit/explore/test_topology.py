"""Canonical forms: what is the same network is the same topology, and nothing is lost by it."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.explore.networks import dimension, graphs
from tnc.errors import SearchError
from tnc.explore import Space, Topology


def ring(order: tuple[int, ...], ranks: tuple[int, ...], modes: tuple[int, ...]) -> Topology:
    """Return the ring with these modes around it, bond k after place k."""
    count = len(order)
    bonds = [(order[k], order[(k + 1) % count], ranks[k]) for k in range(count)]
    return Topology.of(modes, bonds)


@given(st.permutations(range(5)), st.tuples(*[st.integers(1, 4)] * 5), st.integers(0, 4))
def test_a_rotated_or_reflected_ring_is_the_same(order: Any, ranks: Any, by: int) -> None:
    modes = (2, 3, 4, 2, 3)
    first = ring(tuple(order), ranks, modes)
    turned = ring((*order[by:], *order[:by]), (*ranks[by:], *ranks[:by]), modes)
    # The bond after place k is before it in the other direction.
    back = ring(tuple(order[::-1]), (*ranks[-2::-1], ranks[-1]), modes)
    assert first == turned == back
    assert first.key == turned.key and str(first) == str(back)


def test_a_ring_with_another_order_is_another() -> None:
    modes, ranks = (3,) * 4, (2, 2, 2, 2)
    assert ring((0, 1, 2, 3), ranks, modes) != ring((0, 2, 1, 3), ranks, modes)
    assert ring((0, 1, 2, 3), (2, 3, 2, 3), modes) != ring((0, 1, 2, 3), (3, 2, 3, 2), modes)


@given(graphs(most=4, hidden=3, rank=4), st.randoms(use_true_random=False))
def test_vertices_without_modes_have_no_names(graph: Any, rng: Any) -> None:
    modes, bonds, hidden = graph
    inner = list(range(len(modes), len(modes) + hidden))
    shuffled = list(inner)
    rng.shuffle(shuffled)
    name = {**{v: v for v in range(len(modes))}, **dict(zip(inner, shuffled))}
    renamed = [(name[b], name[a], size) for a, b, size in bonds]
    rng.shuffle(renamed)
    assert Topology.of(modes, bonds, hidden) == Topology.of(modes, renamed, hidden)


@given(graphs(hidden=3))
def test_the_canonical_form_is_its_own(graph: Any) -> None:
    topology = Topology.of(*graph)
    assert Topology.of(topology.modes, topology.bonds, topology.hidden) == topology
    assert Topology.from_json(topology.to_json()) == topology
    assert all(size > 1 for _, _, size in topology.bonds)
    assert len(topology.shapes) == len(topology.modes) + topology.hidden


@settings(max_examples=60)
@given(graphs())
def test_nothing_is_lost_by_the_gauge(graph: Any) -> None:
    modes, bonds, hidden = graph
    topology = Topology.of(modes, bonds, hidden)
    assert dimension(modes, bonds, hidden) == dimension(modes, topology.bonds, topology.hidden)


def test_too_narrow_a_bond_would_be_seen() -> None:
    modes, wide = (3, 3, 3), ((0, 1, 9), (1, 2, 2))
    topology = Topology.of(modes, wide)
    assert topology.bonds == ((0, 1, 3), (1, 2, 2))
    assert dimension(modes, wide) == dimension(modes, topology.bonds)
    assert dimension(modes, ((0, 1, 2), (1, 2, 2))) < dimension(modes, wide)


def test_bonds_of_one_double_bonds_and_middle_vertices_are_taken_away() -> None:
    assert Topology.of((2, 2), [(0, 1, 1)]).bonds == ()
    assert Topology.of((9, 9), [(0, 1, 2), (1, 0, 3)]).bonds == ((0, 1, 6),)
    assert Topology.of((9, 9), [(0, 2, 4), (1, 2, 3)], 1) == Topology.of((9, 9), [(0, 1, 3)])
    assert Topology.of((9, 9), [(0, 2, 4)], 1).bonds == ()
    star = Topology.of((9, 9, 9), [(k, 3, 2) for k in range(3)], 1)
    assert star.hidden == 1 and star.parameters == 3 * 18 + 8


@pytest.mark.parametrize("bond", [(0, 0, 2), (0, 5, 2), (-1, 1, 2), (0, 1, 0)])
def test_what_is_no_bond_is_refused(bond: tuple[int, int, int]) -> None:
    with pytest.raises(SearchError, match="does not join two"):
        Topology.of((2, 2), [bond])


def test_the_points_of_a_ring_that_are_alike_are_as_many_as_its_symmetries() -> None:
    space = Space.of((3, 3, 3, 3), "ring", 3)
    wanted = ring((0, 1, 2, 3), (2, 3, 2, 3), space.modes)
    alike = sum(space.topology(point) == wanted for point in space.all())
    turned = {ring(order, (2, 3, 2, 3), space.modes) for order in permutations(range(4))}
    assert alike == 8
    assert len(turned) == 6
