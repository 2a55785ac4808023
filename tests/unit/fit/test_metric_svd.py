"""Whitened low rank against closed forms, random search and bad data."""

from __future__ import annotations

import numpy
import pytest
import torch

from tnc.errors import FitError
from tnc.fit import Metric, fit_structure, reconstruct, relative_error
from tnc.net import Signature, Structure, parse_network

SHAPE = Signature((10,), (14,))


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(rank: int, signature: Signature = SHAPE) -> Structure:
    (o,), (i,) = signature.outputs, signature.inputs
    return Structure.of(parse_network(f"B[o r] A[r i] : i -> o | o={o} i={i} r={rank}"))


def optimum(weight: torch.Tensor, samples: torch.Tensor, rank: int) -> float:
    """The least ||(W - W') X^T|| over rank: the tail of the SVD of W X^T (numpy oracle)."""
    values = numpy.linalg.svd((weight @ samples.T).numpy(), compute_uv=False)
    return float(numpy.sqrt((values[rank:] ** 2).sum()) / numpy.sqrt((values**2).sum()))


@pytest.mark.parametrize("samples", [4, 9, 14, 200])
@pytest.mark.parametrize("dead", [0, 3])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_whitened_svd_is_the_optimum(samples, dead, rank):
    weight, rows = gaussian(10, 14), gaussian(samples, 14, seed=1)
    rows[:, :dead] = 0
    fitted = fit_structure(weight, low_rank(rank), "svd", Metric(rows.T @ rows))
    direct = weight - reconstruct(low_rank(rank), fitted.cores)
    reached = float((direct @ rows.T).norm() / (weight @ rows.T).norm())
    assert reached == pytest.approx(optimum(weight, rows, rank), rel=1e-6, abs=1e-6)
    assert fitted.error == pytest.approx(reached, abs=1e-6)


def test_the_optimum_oracle_can_fail():
    weight, rows = gaussian(10, 14), gaussian(200, 14, seed=1) * torch.logspace(0, -2, 14)
    plain = fit_structure(weight, low_rank(3))
    unaware = relative_error(
        weight, reconstruct(low_rank(3), plain.cores), SHAPE, Metric(rows.T @ rows)
    )
    assert unaware > optimum(weight, rows, 3) * 1.01


def test_random_search_does_not_beat_the_two_sided_optimum():
    weight, rows, columns = gaussian(10, 14), gaussian(30, 14, seed=1), gaussian(25, 10, seed=2)
    metric = Metric(rows.T @ rows, columns.T @ columns)
    structure = low_rank(4)
    fitted = fit_structure(weight, structure, "svd", metric)
    generator = torch.Generator().manual_seed(5)
    for scale in (1e-1, 1e-2, 1e-3):
        for _ in range(60):
            near = {
                name: core + scale * torch.randn(core.shape, generator=generator, dtype=core.dtype)
                for name, core in fitted.cores.items()
            }
            found = relative_error(weight, reconstruct(structure, near), SHAPE, metric)
            assert found >= fitted.error - 1e-12
    closed = numpy.linalg.svd((columns @ weight @ rows.T).numpy(), compute_uv=False)
    expected = numpy.sqrt((closed[4:] ** 2).sum() / (closed**2).sum())
    assert fitted.error == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize("text", ["A[r i] B[o r]", "A[i r] B[r o]", "B[r o] A[i r]"])
def test_order_of_cores_and_legs_does_not_matter(text):
    structure = Structure.of(parse_network(f"{text} : i -> o | i=14 o=10 r=3"))
    weight = gaussian(10, 14)
    assert fit_structure(weight, structure, "svd").error == pytest.approx(
        fit_structure(weight, low_rank(3), "svd").error, rel=1e-12
    )


def test_factors_are_balanced():
    fitted = fit_structure(gaussian(10, 14), low_rank(5), "svd", Metric(torch.rand(14) + 0.1))
    assert torch.allclose(fitted.cores["B"].norm(dim=0), fitted.cores["A"].norm(dim=1))


def test_rank_beyond_the_matrix_is_filled_with_zeros():
    assert fit_structure(gaussian(10, 14), low_rank(13), "svd").error < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cores_come_in_the_weights_dtype(dtype):
    fitted = fit_structure(gaussian(10, 14).to(dtype), low_rank(10))
    assert {core.dtype for core in fitted.cores.values()} == {dtype}
    assert fitted.error < 10 * torch.finfo(dtype).eps


def test_zero_weight_and_zero_moment():
    assert fit_structure(torch.zeros(10, 14), low_rank(2)).error == 0
    metric = Metric(torch.zeros(14, 14))
    assert metric.plain
    assert fit_structure(gaussian(10, 14), low_rank(10), "auto", metric).error < 1e-12


def test_bad_weights_and_metrics_are_refused():
    weight = gaussian(10, 14)
    weight[2, 3] = float("nan")
    with pytest.raises(FitError, match="not finite"):
        fit_structure(weight, low_rank(2))
    with pytest.raises(FitError, match=r"shape \(14, 10\)"):
        fit_structure(gaussian(14, 10), low_rank(2))
    with pytest.raises(FitError, match=r"needs \(14, 14\) or \(14,\)"):
        fit_structure(gaussian(10, 14), low_rank(2), metric=Metric(torch.eye(10)))
    with pytest.raises(FitError, match="inputs has entries that are not finite"):
        fit_structure(gaussian(10, 14), low_rank(2), metric=Metric(torch.eye(14) * float("inf")))
