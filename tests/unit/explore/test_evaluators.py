"""Laws of evaluators, on all that are registered, against the full rebuilding of the tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.elsewhere import elsewhere
from tnc.explore import Evaluator, Fit, Space, Spectra, Topology, evaluators
from tnc.explore.alternating.bench import Bench
from tnc.explore.carrying import carried
from tnc.explore.evaluator import dense, rse

NAMES = [name for name, kind in evaluators.all().items() if kind.__module__.startswith("tnc.")]
OPTIONS: dict[str, dict[str, Any]] = {"adam": {"steps": 3000, "rate": 1e-2}}
"""What makes an evaluator quick enough for tests."""

CASES = {
    "two": Topology.of((3, 4), [(0, 1, 2)]),
    "bound": Topology.of((2, 3, 4), [(0, 1, 2), (1, 2, 4)]),
    "apart": Topology.of((3, 2, 3), []),
    "lonely": Topology.of((3, 3, 2, 3), [(0, 1, 2), (1, 3, 2)]),
    "one": Topology.of((2, 1, 3, 2), [(0, 2, 2), (2, 3, 2)]),
    "ring": Topology.of((3, 3, 3, 3), [(0, 1, 2), (1, 2, 2), (2, 3, 2), (0, 3, 2)]),
    "tree": Topology.of((3, 3, 3, 3), [(0, 4, 2), (1, 4, 2), (2, 5, 2), (3, 5, 2), (4, 5, 3)], 2),
    "dense": Topology.of((2,) * 5, [(a, b, 2) for a in range(5) for b in range(a)]),
    "eight": Topology.of((2,) * 8, [(k, (k + 1) % 8, 2) for k in range(8)]),
    "tall": Topology.of((2,) * 8, [(a, b, 2) for a, b in Space.of((2,) * 8, "tree").pairs], 6),
}
EXACT = ("two", "bound", "lonely", "ring", "tree", "eight", "tall")


def made(name: str) -> Evaluator:
    return evaluators.get(name)(**OPTIONS.get(name, {}))


def noise(topology: Topology, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(topology.modes)


def exact(topology: Topology, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return dense(tuple(rng.standard_normal(shape) for shape in topology.shapes), topology)


def faults(tensor: Any, topology: Topology, fit: Fit) -> list[str]:
    """What is wrong with a fit; empty when nothing is."""
    found = []
    if tuple(core.shape for core in fit.cores) != topology.shapes:
        found.append(f"shapes {[core.shape for core in fit.cores]}")
    elif abs(fit.rse - rse(tensor, fit.cores, topology)) > 1e-9:
        found.append(f"rse {fit.rse}, rebuilt {rse(tensor, fit.cores, topology)}")
    if fit.rse < Spectra.of(tensor).floor(topology) - 1e-9:
        found.append(f"rse {fit.rse} below the bound")
    if not fit.counts.get("starts"):
        found.append("no count of starts")
    if any(core.dtype != np.float64 for core in fit.cores):
        found.append("cores not in float64")
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_fits_are_what_they_say(name: str, case: str) -> None:
    topology = CASES[case]
    tensor = noise(topology)
    assert not faults(tensor, topology, made(name).fit(tensor, topology, seed=1, effort=0.3))


@pytest.mark.parametrize("case", EXACT)
@pytest.mark.parametrize("name", NAMES)
def test_exact_topologies_are_recovered(name: str, case: str) -> None:
    if (name, case) == ("adam", "tall"):
        pytest.skip("the product of fourteen cores of deviation 0.1 has no gradient")
    topology = CASES[case]
    tensor = exact(topology)
    assert made(name).fit(tensor, topology, seed=2).rse < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_start_is_never_made_worse(name: str) -> None:
    topology = CASES["ring"]
    cores = tuple(np.random.default_rng(3).standard_normal(s) for s in topology.shapes)
    tensor = dense(cores, topology) + 0.1 * noise(topology)
    before = rse(tensor, cores, topology)
    for effort in (1e-9, 0.1):
        fit = made(name).fit(tensor, topology, seed=0, effort=effort, start=cores)
        assert fit.rse <= before * (1 + 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_stops_at_enough(name: str) -> None:
    topology = CASES["ring"]
    tensor = exact(topology)
    quick = made(name).fit(tensor, topology, seed=0, enough=0.5)
    full = made(name).fit(tensor, topology, seed=0)
    assert quick.rse <= 0.5
    assert sum(quick.counts.values()) < sum(full.counts.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_of_zeros_has_no_error(name: str) -> None:
    topology = CASES["ring"]
    fit = made(name).fit(np.zeros(topology.modes), topology, seed=0)
    assert fit.rse == 0.0 and not any(core.any() for core in fit.cores)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_has_no_finite_error(name: str) -> None:
    topology = CASES["ring"]
    tensor = noise(topology)
    tensor[0, 1, 2, 0] = np.nan
    try:
        fit = made(name).fit(tensor, topology, seed=0)
    except (ArithmeticError, np.linalg.LinAlgError):
        return
    assert not np.isfinite(fit.rse)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_a_tensor_is_no_matter(scale: float) -> None:
    topology = CASES["ring"]
    tensor = noise(topology)
    errors = [made("als").fit(size * tensor, topology, seed=0).rse for size in (1.0, scale)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_wrong_fits_are_found() -> None:
    topology = CASES["ring"]
    tensor = noise(topology)
    fit = made("als").fit(tensor, topology, seed=0)
    assert not faults(tensor, topology, fit)
    assert faults(tensor, topology, Fit(fit.rse * 0.99, fit.cores, fit.counts))
    assert faults(tensor, topology, Fit(fit.rse, (2 * fit.cores[0], *fit.cores[1:]), fit.counts))
    assert faults(tensor, topology, Fit(fit.rse, fit.cores[::-1], fit.counts))
    assert faults(exact(topology), CASES["apart"], Fit(0.0, (), {"starts": 1.0}))


def test_true_rings_are_found_from_nearly_every_seed() -> None:
    ring = Topology.of((3,) * 6, [(k, (k + 1) % 6, 2 + k % 2) for k in range(6)])
    found = [made("als").fit(exact(ring, seed), ring, seed=seed).rse for seed in range(30)]
    assert sum(error < 1e-7 for error in found) >= 29


def fitted(*names: str) -> dict[str, list[float]]:
    """Return figures of the fits of evaluators."""
    said = {}
    for name in names:
        for case in ("two", "lonely", "ring", "tree", "dense"):
            fit = made(name).fit(noise(CASES[case]), CASES[case], seed=4, effort=0.2)
            said[f"{name} {case}"] = [fit.rse, *(float(core.sum()) for core in fit.cores)]
    return said


PROGRAM = """
import json, sys
if sys.argv[1] == "without":
    sys.modules["numba"] = None
from tests.unit.explore.test_evaluators import fitted
print(json.dumps(fitted("als")))
"""


def told(how: str, seed: str) -> tuple[dict[str, list[float]], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={"PYTHONHASHSEED": seed, "PATH": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), done.stderr


def test_fits_are_the_same_in_another_process() -> None:
    assert elsewhere(f"{__name__}:fitted", *NAMES) == fitted(*NAMES)


def test_numpy_finds_what_numba_finds_and_says_so_once() -> None:
    compiled, quiet = told("with", "1")
    plain, said = told("without", "1")
    assert quiet == "" and said.count("numba is not installed") == 1
    for key, numbers in plain.items():
        most = 1e-5 if "dense" in key else 1e-8  # where bonds are too many, rounding steers
        assert numbers[0] == pytest.approx(compiled[key][0], abs=most)


def test_bonds_that_are_not_needed_are_cut_without_loss() -> None:
    narrow = CASES["ring"]
    wide = Topology.of(narrow.modes, [(a, b, size + 1) for a, b, size in narrow.bonds])
    tensor = exact(narrow)
    rng = np.random.default_rng(5)
    cores = [np.zeros(shape) for shape in wide.shapes]
    for core, given in zip(cores, made("als").fit(tensor, narrow, seed=0).cores):
        core[tuple(slice(size) for size in given.shape)] = given
    for k, (a, b, size) in enumerate(wide.bonds):
        turn = rng.standard_normal((size, size))
        for v, matrix in ((a, turn), (b, np.linalg.inv(turn).T)):
            place = 1 + wide.legs[v].index(k)
            cores[v] = np.moveaxis(np.tensordot(cores[v], matrix, (place, 0)), -1, place)
    assert rse(tensor, tuple(cores), wide) < 1e-7
    assert rse(tensor, carried(tuple(cores), wide, narrow, 0), narrow) < 1e-7
    grown = carried(tuple(cores), wide, Topology.of(wide.modes, [(0, 2, 2), *wide.bonds]), 0, 0.01)
    assert rse(tensor, grown, Topology.of(wide.modes, [(0, 2, 2), *wide.bonds])) < 1e-2


def test_what_needs_too_much_memory_is_refused_by_name() -> None:
    full = Topology.of((4,) * 8, [(a, b, 4) for a in range(8) for b in range(a)])
    with pytest.raises(MemoryError, match="GiB"):
        Bench.of(np.ones(full.modes), full)
