"""Bounds from unfoldings: below every fit, and exact where there is one bond."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.explore.networks import contracted, graphs, random_cores, tensor_of
from tnc.explore import Spectra, Topology
from tnc.explore.evaluator import rse


@settings(max_examples=150)
@given(graphs(), st.floats(0.0, 2.0), st.integers(0, 99))
def test_no_network_is_below_its_bound(graph: Any, noise: float, seed: int) -> None:
    topology = Topology.of(*graph)
    near = tensor_of(topology, seed)
    rng = np.random.default_rng(seed)
    tensor = near + noise * near.std() * rng.standard_normal(near.shape)
    floor = Spectra.of(tensor).floor(topology)
    cores = random_cores(topology.modes, topology.bonds, topology.hidden, seed)
    assert floor <= best_last_core(tensor, cores, topology) + 1e-12


def best_last_core(tensor: Any, cores: list[Any], topology: Topology) -> float:
    """Return the error with every core in its turn the best for the others."""
    for v in range(len(cores)):
        rest = contracted(cores, topology.modes, topology.bonds, skip=v)
        legs = len(topology.legs[v])
        rows = rest.reshape(int(np.prod(rest.shape[:legs])), -1)
        goal = np.moveaxis(tensor, v, 0) if v < tensor.ndim else tensor[None]
        solved = np.linalg.lstsq(rows.T, goal.reshape(len(goal), -1).T, rcond=None)[0].T
        cores[v] = solved.reshape(topology.shapes[v])
    return rse(tensor, tuple(cores), topology)


@given(graphs())
def test_an_exact_tensor_has_no_bound(graph: Any) -> None:
    topology = Topology.of(*graph)
    assert Spectra.of(tensor_of(topology)).floor(topology) < 1e-13


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_bond_is_what_eckart_and_young_say(rank: int) -> None:
    tensor = np.random.default_rng(0).standard_normal((4, 5))
    left, values, right = np.linalg.svd(tensor, full_matrices=False)
    topology = Topology.of((4, 5), [(0, 1, rank)])
    cores = (left[:, :rank] * values[:rank], right[:rank].T) if rank > 1 else (
        left[:, 0] * values[0], right[0])  # fmt: skip
    floor = Spectra.of(tensor).floor(topology)
    assert floor == pytest.approx(rse(tensor, cores, topology), rel=1e-12)
    assert floor == pytest.approx((values[rank:] ** 2).sum() / (values**2).sum(), rel=1e-12)


def test_the_bound_is_the_largest_over_all_cuts_and_all_sides_of_hidden_vertices() -> None:
    star = Topology.of((3, 3, 3), [(k, 3, 2) for k in range(3)], 1)
    tensor = np.random.default_rng(1).standard_normal((3, 3, 3))
    spectra = Spectra.of(tensor)
    tails = []
    for mode in range(3):
        values = np.linalg.svd(np.moveaxis(tensor, mode, 0).reshape(3, -1), compute_uv=False)
        tails.append((values[2:] ** 2).sum() / (values**2).sum())
    assert spectra.floor(star) == pytest.approx(max(tails), rel=1e-12)


def test_a_bound_of_too_narrow_a_network_would_be_seen() -> None:
    wide = Topology.of((3, 3, 3), [(0, 1, 3), (1, 2, 3)])
    narrow = Topology.of((3, 3, 3), [(0, 1, 2), (1, 2, 3)])
    tensor = tensor_of(wide)
    cores = tuple(random_cores(wide.modes, wide.bonds))
    assert Spectra.of(tensor).floor(narrow) > rse(tensor, cores, wide) + 1e-6


def test_cuts_that_are_left_out_only_lower_the_bound() -> None:
    tensor = np.random.default_rng(2).standard_normal((2, 3, 2, 3))
    topology = Topology.of(tensor.shape, [(0, 1, 2), (1, 2, 2), (2, 3, 2)])
    floors = [Spectra.of(tensor, most).floor(topology) for most in (1, 4, 7)]
    assert floors == sorted(floors)
