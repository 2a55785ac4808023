"""Core shapes: exact against brute force, the energy table against the true truncated HOSVD."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tnc.decide.packing import (
    CoreShape,
    Packing,
    bang_for_buck,
    choose_by_iteration,
    core_spectra,
    energy_table,
    greedy,
    iterated_error,
    pack_by_energy,
    pack_exact,
    pack_program,
    rescore,
    shortlist,
)
from tnc.errors import InfeasibleBudget, PlanError


@st.composite
def packings(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    fixed = draw(st.sets(st.integers(0, len(sizes) - 1), max_size=2))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    spectra = [_spectrum(rng, int(rng.integers(1, size + 1))) for size in sizes]
    whole = prod(sizes[mode] for mode in fixed)
    smallest = whole + sum(size for mode, size in enumerate(sizes) if mode not in fixed)
    budget = smallest + draw(st.integers(0, 300))
    return Packing(tuple(spectra), tuple(sizes), budget, tuple(fixed))


def _spectrum(rng, length):
    values = np.sort(rng.integers(0, 9, length).astype(float))[::-1]
    return values * rng.choice([1.0, 0.37])


def _allowed(problem, ranks):
    """Check a shape from the definition, apart from the code under test."""
    entries, used = prod(ranks), prod(ranks)
    for mode, rank in enumerate(ranks):
        if mode in problem.fixed:
            if rank != problem.sizes[mode]:
                return False
            continue
        used += problem.sizes[mode] * rank
        others = entries // rank if rank else 0
        if not 1 <= rank <= len(problem.spectra[mode]) or rank > others:
            return False
    return used <= problem.budget


def _packed(problem, ranks):
    return sum(problem.spectra[mode][:rank].sum() for mode, rank in enumerate(ranks))


def _brute(problem):
    sides = [
        (size,) if mode in problem.fixed else range(1, size + 1)
        for mode, size in enumerate(problem.sizes)
    ]
    return max(_packed(problem, ranks) for ranks in product(*sides) if _allowed(problem, ranks))


def _is_optimal(problem, ranks):
    return _allowed(problem, ranks) and _packed(problem, ranks) >= _brute(problem) - 1e-9


@settings(max_examples=150, deadline=None)
@given(packings())
def test_exact_is_the_best_of_all_shapes(problem):
    shape = pack_exact(problem)
    assert _is_optimal(problem, shape.ranks)
    assert shape.packed == pytest.approx(_packed(problem, shape.ranks))
    assert shape.params == problem.params(shape.ranks) <= problem.budget


def test_the_oracle_rejects_wrong_answers():
    spectrum = np.array([4.0, 2.0, 1.0])
    problem = Packing((spectrum,) * 3, (3, 3, 3), 30)
    assert _is_optimal(problem, (2, 2, 2))
    assert not _is_optimal(problem, (1, 2, 2))
    assert not _is_optimal(problem, (3, 3, 3))
    assert not _is_optimal(problem, (3, 1, 1))
    with pytest.raises(PlanError, match="exceeds the product"):
        problem.shape((3, 1, 1), "wrong")
    with pytest.raises(PlanError, match="exceed 30"):
        problem.shape((3, 3, 3), "wrong")


@settings(max_examples=60, deadline=None)
@given(packings())
def test_baselines_respect_the_bounds_and_do_not_beat_exact(problem):
    best = pack_exact(problem).packed
    for solver in (bang_for_buck, greedy):
        shape = solver(problem)
        assert _allowed(problem, shape.ranks)
        assert shape.packed <= best + 1e-9


@settings(max_examples=12, deadline=None)
@given(packings())
def test_the_program_never_beats_exact(problem):
    shape = pack_program(problem)
    assert _allowed(problem, shape.ranks)
    assert shape.packed <= pack_exact(problem).packed + 1e-9


@pytest.mark.parametrize("sizes", [(40, 30, 20), (64, 16, 8, 6)])
def test_exact_is_never_worse_than_the_program_on_power_laws(sizes):
    spectra = tuple(np.arange(1.0, size + 1) ** -1.5 for size in sizes)
    problem = Packing(spectra, sizes, 1500)
    assert pack_exact(problem).packed >= pack_program(problem).packed * (1 - 1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_chunks_do_not_change_the_answer(monkeypatch, chunk):
    spectra = tuple(np.arange(1.0, size + 1) ** -0.8 for size in (12, 9, 8, 5))
    problem = Packing(spectra, (12, 9, 8, 5), 700)
    expected = pack_exact(problem)
    monkeypatch.setattr("tnc.decide.packing.exact.CHUNK", chunk)
    assert pack_exact(problem) == expected


def test_equal_energy_prefers_fewer_parameters():
    spectrum = np.array([3.0, 1.0, 0.0, 0.0])
    problem = Packing((spectrum, spectrum), (4, 4), 1000)
    assert pack_exact(problem).ranks == (2, 2)


def test_a_mode_kept_whole_has_no_factor():
    spectra = tuple(np.arange(1.0, size + 1) ** -1.0 for size in (8, 8, 3, 3))
    shape = pack_exact(Packing(spectra, (8, 8, 3, 3), 300, fixed=(2, 3)))
    assert shape.ranks[2:] == (3, 3)
    assert shape.params == prod(shape.ranks) + 8 * (shape.ranks[0] + shape.ranks[1])


def test_too_many_shapes_are_refused_with_a_way_out():
    spectra = tuple(np.ones(20) for _ in range(4))
    with pytest.raises(PlanError) as caught:
        pack_exact(Packing(spectra, (20,) * 4, 5000), limit=10)
    assert "pack_program" in caught.value.hint


def test_shapes_that_no_number_can_code_are_refused():
    with pytest.raises(PlanError, match="partial core shapes"):
        pack_exact(Packing((np.ones(16),) * 17, (16,) * 17, 10**6))


def test_an_infeasible_budget_names_the_smallest():
    spectrum = np.ones(4)
    with pytest.raises(InfeasibleBudget) as caught:
        Packing((spectrum, spectrum, spectrum), (4, 5, 6), 15)
    assert "15" in caught.value.message and "at least 16" in caught.value.hint
    assert pack_exact(Packing((spectrum, spectrum, spectrum), (4, 5, 6), 16)).ranks == (1, 1, 1)


@pytest.mark.parametrize(
    ("spectrum", "said"),
    [
        (np.array([1.0, 2.0]), "descend"),
        (np.array([1.0, -2.0]), "negative"),
        (np.ones(9), "spectrum"),
        (np.array([np.nan]), "finite"),
        (np.ones((2, 2)), "spectrum"),
    ],
)
def test_spectra_that_are_none_are_refused(spectrum, said):
    with pytest.raises(PlanError, match=said):
        Packing((spectrum, np.ones(3)), (4, 4), 100)


def _hosvd(tensor):
    factors = [
        np.linalg.svd(_unfold(tensor, mode), full_matrices=False)[0] for mode in range(tensor.ndim)
    ]
    return _apply([factor.T for factor in factors], tensor), factors


def _unfold(tensor, mode):
    return np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)


def _apply(matrices, tensor):
    for mode, matrix in enumerate(matrices):
        tensor = np.moveaxis(np.tensordot(matrix, tensor, axes=(1, mode)), 0, mode)
    return tensor


def _truncation_error(tensor, factors, ranks):
    projections = [factor[:, :rank] @ factor[:, :rank].T for factor, rank in zip(factors, ranks)]
    return np.sum((tensor - _apply(projections, tensor)) ** 2)


@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 2, 4, 2), (6, 5)])
def test_the_energy_table_is_the_true_truncation_error(shape):
    tensor = np.random.default_rng(3).standard_normal(shape)
    core, factors = _hosvd(tensor)
    table, total = energy_table(core), np.sum(tensor**2)
    for ranks in product(*(range(1, size + 1) for size in core.shape)):
        error = total - table[tuple(rank - 1 for rank in ranks)]
        assert error == pytest.approx(_truncation_error(tensor, factors, ranks), abs=1e-9)
    wrong = energy_table(core[::-1])
    assert (
        abs(total - wrong[(0,) * core.ndim] - _truncation_error(tensor, factors, (1,) * core.ndim))
        > 1e-3
    )


@pytest.mark.parametrize("fixed", [(), (1,)])
def test_packing_by_energy_finds_the_least_truncation_error(fixed):
    tensor = np.random.default_rng(5).standard_normal((5, 4, 6))
    core, factors = _hosvd(tensor)
    for mode in fixed:
        factors[mode] = np.eye(tensor.shape[mode])
    core = _apply([factor.T for factor in factors], tensor)
    found = pack_by_energy(core, tensor.shape, 90, fixed=fixed)
    problem = Packing(core_spectra(core), tensor.shape, 90, fixed)
    sides = [
        (size,) if mode in fixed else range(1, size + 1) for mode, size in enumerate(tensor.shape)
    ]
    errors = {
        ranks: _truncation_error(tensor, factors, ranks)
        for ranks in product(*sides)
        if _allowed(problem, ranks)
    }
    assert errors[found.ranks] == pytest.approx(min(errors.values()))
    assert found.error == pytest.approx(errors[found.ranks] / np.sum(tensor**2))


def test_core_spectra_are_the_squared_singular_values():
    tensor = np.random.default_rng(7).standard_normal((4, 5, 3))
    for mode, spectrum in enumerate(core_spectra(_hosvd(tensor)[0])):
        expected = np.linalg.svd(_unfold(tensor, mode), compute_uv=False) ** 2
        np.testing.assert_allclose(spectrum, expected, rtol=1e-10)


def test_a_cut_mode_cannot_be_kept_whole():
    with pytest.raises(PlanError, match="kept whole"):
        pack_by_energy(np.ones((2, 2)), (4, 4), 100, fixed=(0,))


def test_the_shortlist_is_distinct_and_rescoring_orders_it():
    tensor = np.random.default_rng(11).standard_normal((6, 7, 5)) ** 3
    core, factors = _hosvd(tensor)
    problem = Packing(core_spectra(core), tensor.shape, 120)
    shapes = shortlist(problem, core=core)
    assert len({shape.ranks for shape in shapes}) == len(shapes)
    assert {"energy", "exact", "bang-for-buck", "greedy"} == {
        name for shape in shapes for name in shape.solver.split("+")
    }
    best = rescore(shapes, lambda ranks: _truncation_error(tensor, factors, ranks))
    assert "energy" in best[0].solver
    assert [shape.error for shape in best] == sorted(shape.error for shape in best)


@pytest.mark.parametrize("seed", [5, 9, 11])
def test_no_exchange_of_ranks_improves_the_answer_by_iteration(seed):
    rng = np.random.default_rng(seed)
    sizes = (9, 8, 7, 6)
    core, _ = _hosvd(rng.normal(size=sizes) * np.exp(rng.normal(size=sizes)))
    found = choose_by_iteration(core, sizes, 200)
    problem = Packing(core_spectra(core), sizes, 200)
    for change in product((-1, 0, 1), repeat=4):
        ranks = tuple(rank + by for rank, by in zip(found.ranks, change))
        small = sorted(change) in ([0, 0, 0, 1], [-1, 0, 0, 1])
        if small and not problem.why_not(ranks):
            assert iterated_error(core, ranks) >= found.error - 1e-12


def test_answers_are_values_and_repeat():
    spectra = tuple(np.arange(1.0, size + 1) ** -1.2 for size in (30, 20, 10))
    one = [shortlist(Packing(spectra, (30, 20, 10), budget)) for budget in range(100, 900, 100)]
    two = [shortlist(Packing(spectra, (30, 20, 10), budget)) for budget in range(100, 900, 100)]
    assert one == two
    assert all(isinstance(shape, CoreShape) for shapes in one for shape in shapes)
