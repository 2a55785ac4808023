"""Ranks from spectra: one climb gives a ladder of sizes, each with the best ranks found."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tnc.decide.ranks import climb
from tnc.derive.cost import parameters
from tnc.net import Signature
from tnc.structures import families

SIGNATURE = Signature((12,), (18,))


def spectra(template, decay: float = 0.7, seed: int = 0) -> dict[str, np.ndarray]:
    """Squared errors by rank, falling to zero at the bound."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, top in template.bounds:
        energy = decay ** np.arange(top) * generator.uniform(0.5, 1.5, top)
        found[name] = np.append(np.cumsum(np.sort(energy))[::-1], 0.0)
    return found


def template_of(name: str, **options: object):
    return families.get(name)(**options).template(SIGNATURE)


TEMPLATES = {
    "low-rank": template_of("low-rank"),
    "tucker": template_of("tucker"),
    "tensor-train": template_of("tensor-train", factors=3),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_ladder_fits_its_sizes_and_falls_in_error(name: str) -> None:
    template = TEMPLATES[name]
    sizes = [30, 60, 100, 150, 200]
    found = climb(template, spectra(template), sizes)
    assert found and all(parameters(template.at(dict(one.ranks))) == one.params for one in found)
    assert all(one.params <= max(sizes) for one in found)
    assert [one.params for one in found] == sorted(one.params for one in found)
    errors = [one.error for one in found]
    assert errors == sorted(errors, reverse=True) and len(set(errors)) == len(errors)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("seed", range(3))
def test_the_climb_is_near_the_best_of_all_ranks(name: str, seed: int) -> None:
    template = TEMPLATES[name]
    tails = spectra(template, seed=seed)
    every = []
    for ranks in product(*(range(1, top + 1) for _, top in template.bounds)):
        named = dict(zip([n for n, _ in template.bounds], ranks))
        error = sum(float(tails[n][r]) for n, r in named.items())
        every.append((parameters(template.at(named)), error))
    whole = sum(float(t[0]) for t in tails.values())
    for size in (80, 120, 160):
        found = climb(template, tails, [size])
        best = min(error for params, error in every if params <= size)
        worst = max(error for params, error in every if params <= size)
        assert best - 1e-12 <= found[0].error <= best + 0.1 * whole
        assert worst > best + 0.1 * whole, "any ranks would do"


def test_at_the_full_size_the_ranks_are_full() -> None:
    template = TEMPLATES["low-rank"]
    (found,) = climb(template, spectra(template), [10**6])
    assert dict(found.ranks) == template.bound and found.error == 0


def test_sizes_below_the_smallest_structure_give_nothing() -> None:
    template = TEMPLATES["tucker"]
    smallest = parameters(template.at({name: 1 for name, _ in template.bounds}))
    assert climb(template, spectra(template), [smallest - 1]) == ()
    (found,) = climb(template, spectra(template), [smallest])
    assert {rank for _, rank in found.ranks} == {1}


def test_ranks_are_multiples_where_that_is_asked_for() -> None:
    template = TEMPLATES["tucker"]
    found = climb(template, spectra(template), [200, 300, 400], round_to=4)
    ranks = [(rank, template.bound[name]) for one in found for name, rank in one.ranks]
    assert found and all(rank % 4 == 0 or rank == top for rank, top in ranks)


def test_bonds_without_a_spectrum_keep_in_step() -> None:
    template = TEMPLATES["tensor-train"]
    found = climb(template, {}, [60, 120, 200])
    for one in found:
        shares = [rank / template.bound[name] for name, rank in one.ranks]
        low, high = min(shares), max(shares)
        assert high - low <= 1 / min(top for _, top in template.bounds) + 1e-9, one.ranks
