"""Interpolation between measured points."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tnc.kernels.grid import Grid, filled

AXES = ((1, 4, 32), (1, 2, 16, 64), (2, 8))
SIZES = tuple(product(*AXES))


@given(st.floats(0.2, 1.5), st.tuples(*(st.integers(1, 500) for _ in AXES)))
def test_a_power_law_is_met_between_the_points(power: float, sizes: tuple[int, ...]) -> None:
    grid = Grid(AXES, tuple(3e-6 * prod(point) ** power for point in SIZES))
    inside = tuple(
        min(max(size, axis[0]), axis[-1]) for size, axis in zip(sizes, AXES, strict=True)
    )
    assert grid.at(inside) == pytest.approx(3e-6 * prod(inside) ** power)
    beyond = prod(size / near for size, near in zip(sizes, inside, strict=True))
    assert grid.at(sizes) == pytest.approx(grid.at(inside) * beyond)


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_the_points_are_met(dims: int) -> None:
    axes = (*AXES, (3, 5))[:dims]
    points = tuple(product(*axes))
    seconds = tuple(1e-6 * (1 + index * 37 % 11) for index in range(len(points)))
    grid = Grid(axes, seconds)
    assert [grid.at(point) for point in points] == pytest.approx(seconds)


def test_between_two_points_nothing_leaves_their_range() -> None:
    grid = Grid(((1, 16),), (1e-6, 9e-6))
    between = [grid.at((size,)) for size in range(1, 17)]
    assert between == sorted(between) and between[0] >= 1e-6 and between[-1] <= 9.000001e-6


def test_unmeasured_points_grow_from_the_best_rate_below() -> None:
    grid = filled(((1, 4), (1, 8)), (1.0, 4.0, 2.0, None))
    assert grid.at((4, 8)) == pytest.approx(16.0)


def test_times_that_do_not_fit_the_axes() -> None:
    with pytest.raises(ValueError, match="3 times"):
        Grid(((1, 4), (1, 8)), (1.0, 2.0, 3.0))
