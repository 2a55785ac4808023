"""Joint fits with gates: bonds that are not needed close, and the cores say the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.explore.networks import tensor_of
from tnc.explore import FitTopology, Space, Task, Topology, Trial
from tnc.explore.carrying import carried
from tnc.explore.evaluator import rse
from tnc.explore.evaluators.als import ALS
from tnc.explore.gating import gated

RING = Topology.of((4,) * 4, [(0, 1, 2), (1, 2, 2), (2, 3, 2), (0, 3, 2)])
WIDE = Space.of((4,) * 4, "full", 4).topology((4,) * 6)


def left(fit, topology: Topology) -> Topology:
    """Return the topology of what the gates have left."""
    bonds = [(a, b, int(fit.counts[f"kept {a + 1}-{b + 1}"])) for a, b, _ in topology.bonds]
    return Topology.of(topology.modes, bonds)


@pytest.mark.parametrize("threshold", [0.05, 0.01, 0.002])
def test_cores_have_the_wide_shapes_and_what_is_closed_is_zero(threshold: float) -> None:
    tensor = tensor_of(RING)
    fit = gated(tensor, WIDE, threshold, seed=1)
    assert [core.shape for core in fit.cores] == list(WIDE.shapes)
    assert fit.rse == pytest.approx(rse(tensor, fit.cores, WIDE))
    for k, (a, b, size) in enumerate(WIDE.bonds):
        kept = int(fit.counts[f"kept {a + 1}-{b + 1}"])
        assert 1 <= kept <= size
        for v in (a, b):
            open_ = np.moveaxis(fit.cores[v], 1 + WIDE.legs[v].index(k), 0)
            assert not open_[kept:].any() and open_[:kept].any()


def test_the_narrow_network_starts_where_the_wide_one_ended() -> None:
    tensor = tensor_of(RING)
    fit = gated(tensor, WIDE, 0.01, seed=1)
    narrow = left(fit, WIDE)
    assert narrow.parameters < 0.2 * WIDE.parameters
    assert rse(tensor, carried(fit.cores, WIDE, narrow, 0, 0.0), narrow) == pytest.approx(
        fit.rse, rel=1e-6, abs=1e-14
    )


def test_few_bonds_are_left_of_an_exact_ring_and_the_error_is_small() -> None:
    tensor = tensor_of(RING)
    fits = [gated(tensor, WIDE, 0.01, seed) for seed in range(3)]
    best = min(left(fit, WIDE).parameters for fit in fits)
    assert best <= 1.6 * RING.parameters
    assert min(fit.rse for fit in fits) < 1e-3


def test_a_large_threshold_closes_everything_and_a_small_one_nothing() -> None:
    tensor = tensor_of(RING)
    assert left(gated(tensor, WIDE, 10.0, 0), WIDE).bonds == ()
    assert left(gated(tensor, WIDE, 1e-9, 0), WIDE) == WIDE


def test_a_joint_fit_is_asked_for_as_a_trial() -> None:
    tensor = tensor_of(RING)
    trial = Trial((), WIDE, gates=0.01)
    assert trial.key not in (WIDE.key, Trial((), WIDE, gates=0.02).key)
    outcome, cores = FitTopology(tensor, ALS())(Task(trial))
    assert outcome.metrics["kept 1-2"] >= 1 and outcome.metrics["ratio"] == WIDE.ratio
    again, _ = FitTopology(tensor, ALS())(Task(trial))
    assert again.metrics == outcome.metrics
    assert cores is not None and outcome.metrics["rse"] == rse(tensor, cores, WIDE)


def test_vertices_without_modes_and_networks_without_bonds() -> None:
    star = Topology.of((4, 4, 4), [(k, 3, 3) for k in range(3)], 1)
    tensor = tensor_of(star)
    assert gated(tensor, star, 1e-3, 0).rse < 0.1
    assert gated(tensor, Topology.of((4, 4, 4), []), 1e-3, 0).rse < 1.0
