"""Spaces: graphs by name and by pairs, constraints, sizes, points that are allowed."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnc.errors import SearchError
from tnc.explore import Places, Rank, Space
from tnc.explore.counting import candidates, size_of

SPACES = (
    Space.of((3, 3, 3), "ring", 3),
    Space.of((2, 3, 4, 5), "ring", 2),
    Space.of((4, 4, 4, 4), "chain", 3),
    Space.of((2, 3, 4), "chain", 4, places=False),
    Space.of((4, 4, 4), "star", 3),
    Space.of((2, 3, 4), "star", 5),
    Space.of((4, 4, 4, 4, 4), "tree", 2),
    Space.of((3, 3, 3, 3), "full", 2),
    Space.of((3, 3, 3), "full", 3, places=True),
    Space.of((3, 3, 3), ((0, 3), (1, 3), (2, 4), (3, 4)), 2),
)


@pytest.mark.parametrize("space", SPACES, ids=lambda s: f"{s.modes}-{len(s.pairs)}")
def test_candidates_are_all_that_points_are_each_once(space: Space) -> None:
    listed = list(candidates(space))
    found = {topology for _, topology in listed}
    assert len(found) == len(listed)
    assert found == {space.topology(point) for point in space.all()}
    assert all(space.topology(point) == topology for point, topology in listed)
    told = size_of(space)
    assert told.exact and told.candidates == len(listed) and told.points == space.points


@pytest.mark.parametrize("space", SPACES, ids=lambda s: f"{s.modes}-{len(s.pairs)}")
def test_where_it_is_not_counted_the_size_is_a_bound_and_says_so(space: Space) -> None:
    told = size_of(space, most=0)
    assert not told.exact and str(told).startswith("at most ")
    assert size_of(space).candidates <= told.candidates <= told.points


def test_sizes_known_by_hand() -> None:
    # Three modes: every ring is the same up to its ranks, 2 to 3 ** 3 of them; a pair has one bond.
    assert size_of(Space.of((9, 9, 9), "ring", 3)).candidates == 27
    assert size_of(Space.of((9, 9), "chain", 4)).candidates == 4
    assert size_of(Space.of((4, 4, 4, 4), "full", 2)).candidates == 64
    # Ten to the eighth ranks, 8! orders, sixteen symmetries.
    assert size_of(Space.of((4,) * 8, "ring", 10)).candidates == 10**8 * 40320 // 16


def test_a_count_that_forgets_symmetries_would_be_seen() -> None:
    space = SPACES[0]
    assert space.points > size_of(space).candidates == len(set(map(space.topology, space.all())))


def test_constraints_are_told_and_are_not_counted() -> None:
    free = Space.of((4, 4, 4, 4), "full", 3)
    slim = Space.of((4, 4, 4, 4), "full", 3, params=60, degree=2)
    wide, knot = free.topology((3,) * 6), free.topology((2, 2, 2, 1, 1, 1))
    assert slim.refuses(wide) == "432 parameters, at most 60 are asked"
    assert slim.refuses(knot) == "3 bonds at a vertex, at most 2 are asked"
    assert not slim.refuses(free.topology((2, 1, 1, 2, 1, 2)))
    assert 0 < size_of(slim).candidates < size_of(free).candidates
    assert all(t.parameters <= 60 and max(map(len, t.legs)) <= 2 for _, t in candidates(slim))


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(SearchError, match=r"even without bonds .* 12 parameters, at most 11"):
        Space.of((4, 4, 4), "ring", 3, params=11)
    assert Space.of((4, 4, 4), "ring", 3, params=12)


@given(st.integers(12, 60), st.integers(0, 3), st.integers(0, 99))
def test_points_that_are_allowed_are_not_refused(params: int, degree: int, seed: int) -> None:
    space = Space.of((4, 4, 4), "full", 4, params=params, degree=degree)
    rng = Random(seed)
    for point in (space.allowed(rng), space.allowed(rng, lambda: (4, 4, 4), tries=2)):
        assert not space.refuses(space.topology(point))
        assert len(point) == len(space.axes)


def test_graphs_by_name() -> None:
    star = Space.of((4, 4, 4), "star", 3)
    assert star.pairs == ((0, 3), (1, 3), (2, 3)) and star.hidden == 1 and not star.places
    assert star.topology((2, 2, 2)).parameters == 3 * 8 + 8
    assert all(isinstance(axis, Rank) for axis in star.axes)
    ring = Space.of((4, 4, 4), "ring", 3)
    assert isinstance(ring.axes[-1], Places) and len(ring.axes) == 4


def test_graphs_of_a_user_are_checked() -> None:
    mine = Space.of((4, 4, 4), ((1, 0), (2, 1)), 3)
    assert mine.pairs == ((0, 1), (1, 2)) and mine.hidden == 0 and not mine.places
    wrong: tuple[Any, ...] = (
        (),
        ((0, 1),),
        ((0, 1), (1, 2), (2, 1)),
        ((0, 1), (1, 2), (2, 2)),
        ((0, 1), (1, 2), (2, 4)),
        ((-1, 0), (1, 2)),
    )
    for pairs in wrong:
        with pytest.raises(SearchError, match="are no graph on 3 modes"):
            Space.of((4, 4, 4), pairs, 3)
    with pytest.raises(SearchError, match="no graph is named 'rings'"):
        Space.of((4, 4, 4), "rings", 3)
    with pytest.raises(SearchError, match="no space of bonds up to 0"):
        Space.of((4, 4, 4), "ring", 0)
