"""Laws of fits: every family, every fit, every metric, against dense oracles."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from tests.laws.data import members
from tnc.errors import FitError
from tnc.fit import (
    Metric,
    choose,
    fit_structure,
    fits,
    kept,
    polish,
    reconstruct,
    relative_error,
    tails,
)
from tnc.net import Signature, Structure, parse_network
from tnc.structures import Family, families

SIGNATURES = {
    "odd": Signature((13,), (22,)),
    "conv": Signature((12,), (6, 3, 3)),
    "square": Signature((16,), (16,)),
    "wide": Signature((6,), (40,)),
}
CASES = [
    (name, member, shape)
    for name, member in members()
    for shape, signature in SIGNATURES.items()
    if not isinstance(member, families.get("free-form")) and not member.refuses(signature)
]


def each_case(exact: bool = False, shapes: tuple[str, ...] = tuple(SIGNATURES)):
    """Run a law on every family, each of its options, and every weight that it takes."""
    cases = [
        pytest.param(member, shape, id=f"{name}-{shape}")
        for name, member, shape in CASES
        if shape in shapes and (not exact or member.template(SIGNATURES[shape]).exact)
    ]
    return pytest.mark.parametrize(("family", "shape"), cases)


EXACT = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: on a busy machine, waking other threads costs more than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def calibration(size: int, samples: int, dead: int = 0, seed: int = 7) -> torch.Tensor:
    """A second moment with a decaying spectrum and `dead` channels that are always zero."""
    rows = gaussian(samples, size, seed=seed) @ torch.diag(torch.logspace(0, -1.5, size).double())
    rows = rows @ torch.linalg.qr(gaussian(size, size, seed=seed + 1))[0]
    rows[:, :dead] = 0
    return rows.T @ rows / samples


def metrics(signature: Signature) -> dict[str, Metric]:
    inputs, outputs = torch.Size(signature.inputs).numel(), signature.outputs[0]
    few = calibration(inputs, max(2, inputs // 3), dead=inputs // 5)
    return {
        "plain": Metric(),
        "inputs": Metric(calibration(inputs, 4 * inputs)),
        "both": Metric(few, calibration(outputs, outputs - 2, dead=2)),
        "diagonal": Metric(few.diagonal().clone(), calibration(outputs, 30).diagonal().clone()),
    }


def structure_of(family: Family, signature: Signature, fraction: float = 1.0) -> Structure:
    template = family.template(signature)
    return template.full() if fraction == 1 else template.at(template.scaled(fraction))


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@each_case(exact=True)
def test_full_rank_is_exact_by_the_familys_fit(family, shape, dtype):
    signature = SIGNATURES[shape]
    structure = structure_of(family, signature)
    weight = gaussian(*signature.shape).to(dtype)
    fitted = fit_structure(weight, structure, family.fit)
    rebuilt = reconstruct(structure, fitted.cores)
    assert rebuilt.dtype == dtype
    assert relative_error(weight, rebuilt, signature) <= EXACT[dtype]
    assert fitted.error <= EXACT[dtype]
    assert {n: tuple(c.shape) for n, c in fitted.cores.items()} == structure.shapes


@pytest.mark.parametrize("metric", ["inputs", "both", "diagonal"])
@each_case(exact=True)
def test_full_rank_is_exact_in_every_metric_dead_channels_too(family, shape, metric):
    signature = SIGNATURES[shape]
    structure = structure_of(family, signature)
    weight = gaussian(*signature.shape)
    fitted = fit_structure(weight, structure, "auto", metrics(signature)[metric])
    assert relative_error(weight, reconstruct(structure, fitted.cores), signature) <= 1e-10


@lru_cache(maxsize=4)
def fitted_plainly(structure: Structure) -> torch.Tensor:
    """Rebuild the plain fit of the weight, one for all metrics."""
    weight = gaussian(*structure.signature.shape)
    return reconstruct(structure, fit_structure(weight, structure, "auto", seed=3).cores)


@pytest.mark.parametrize("metric", ["plain", "inputs", "both", "diagonal"])
@each_case(shapes=("odd", "conv"))
def test_truncated_fits_tell_their_error_and_repeat(family, shape, metric):
    signature = SIGNATURES[shape]
    structure = structure_of(family, signature, 0.3)
    weight, norm = gaussian(*signature.shape), metrics(signature)[metric]
    fitted = fit_structure(weight, structure, "auto", norm, seed=3, sweeps=3)
    again = fit_structure(weight, structure, "auto", norm, seed=3, sweeps=3)
    told = relative_error(weight, reconstruct(structure, fitted.cores), signature, norm)
    assert fitted.error == pytest.approx(told, rel=1e-9)
    assert 0 < fitted.error < 1
    assert all(torch.equal(fitted.cores[n], again.cores[n]) for n in fitted.cores)
    unaware = relative_error(weight, fitted_plainly(structure), signature, norm)
    assert fitted.error <= unaware * 1.001 + 1e-9


@each_case(shapes=("odd", "conv"))
def test_als_never_raises_the_error(family, shape):
    signature = SIGNATURES[shape]
    structure = structure_of(family, signature, 0.3)
    weight = gaussian(*signature.shape)
    cores = {n: gaussian(*s, seed=k) for k, (n, s) in enumerate(structure.shapes.items())}
    cores |= {n: kept(cores[n], count) for n, count in structure.stored.items()}
    for norm in (metrics(signature)["plain"], metrics(signature)["both"]):
        error = relative_error(weight, reconstruct(structure, cores), signature, norm)
        now = cores
        for _ in range(3):
            now = polish(weight, structure, now, norm, sweeps=1).cores
            after = relative_error(weight, reconstruct(structure, now), signature, norm)
            assert after <= error + 1e-6
            error = after
        assert error < 1


@pytest.mark.parametrize("shape", ["odd", "conv", "wide"])
@pytest.mark.parametrize("name", ["low-rank", "kronecker", "tensor-train", "block-tensor-train"])
@pytest.mark.parametrize("metric", ["plain", "inputs", "both"])
def test_tails_are_the_error_of_the_fit(name, shape, metric):
    signature, norm = SIGNATURES[shape], metrics(SIGNATURES[shape])[metric]
    template = families.get(name)().template(signature)
    if len(template.bounds) != 1 or (metric != "plain" and name != "low-rank"):
        pytest.skip("tails are exact for one bond, and there in the plain norm")
    weight = gaussian(*signature.shape)
    (bond, bound), network = template.bounds[0], template.full().terms[0]
    expected = tails(weight, network, bond, norm, signature)
    whole = norm.norm(weight, signature) ** 2
    assert expected.shape == (bound + 1,)
    assert float(expected[0]) == pytest.approx(whole, rel=1e-6)
    for rank in sorted({1, 2, (bound + 1) // 2, bound}):
        structure = template.at({bond: rank})
        fitted = fit_structure(weight, structure, "auto", norm)
        padded = structure.padded and rank < bound  # a padded entry is fitted as a zero
        if not padded:
            squared = fitted.error**2 * whole
            assert squared == pytest.approx(float(expected[rank]), rel=1e-5, abs=1e-7 * whole)


def test_every_fit_meets_a_family_or_is_generic():
    served = [
        member.template(signature).full()
        for _, member in members()
        for signature in SIGNATURES.values()
        if not member.refuses(signature)
    ]
    for name, fit in fits.all().items():
        assert any(not fit.accepts(structure) for structure in served), name
    assert {member.fit for _, member in members()} <= {"auto", *fits.all()}


@pytest.mark.parametrize("name", sorted(fits.all()))
def test_a_fit_that_does_not_accept_raises_with_its_reason(name):
    odd = parse_network(
        "A[a r] B[r b s t] C[s t c] D[t d r] : (c d) -> (a b) | a=2 b=2 c=2 d=2 r=2 s=2 t=2"
    )
    structure, weight = Structure.of(odd), gaussian(4, 4)
    reason = fits.get(name).accepts(structure)
    if not reason:
        assert name == "als" and choose(structure).name == "als"
        return
    with pytest.raises(FitError) as caught:
        fit_structure(weight, structure, name)
    assert reason in str(caught.value) and "als" in caught.value.hint


def test_the_exactness_law_can_fail():
    signature = SIGNATURES["odd"]
    structure = structure_of(families.get("low-rank")(), signature)
    weight = gaussian(*signature.shape)
    fitted = fit_structure(weight, structure)
    broken = {n: c.clone() for n, c in fitted.cores.items()}
    broken["A"][0, 0] += 1e-3
    assert relative_error(weight, reconstruct(structure, broken), signature) > 1e-10
