"""Alternating least squares: normal matrices, sums, held cores, odd equations."""

from __future__ import annotations

import pytest
import torch

from tnc.derive import adjoint, dense
from tnc.errors import FitError
from tnc.fit import Metric, fit_structure, reconstruct, relative_error, tails
from tnc.fit.conjugate import conjugate_gradients
from tnc.fit.folding import crop, fold
from tnc.fit.inverse import Inverse
from tnc.fit.marginal import fold_moments
from tnc.fit.named_einsum import contract
from tnc.fit.normal import gram
from tnc.net import Signature, Structure, parse_network


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(size: int, samples: int = 50, seed: int = 3) -> torch.Tensor:
    rows = gaussian(samples, size, seed=seed)
    return rows.T @ rows


NETWORKS = [
    "B[o r] A[r i] : i -> o | o=5 i=6 r=2",
    "L[a b d r] R[b c d r] : (c d) -> (a b) | a=2 b=3 c=2 d=3 r=2",
    "A[a c r] B[r b d] : (c d) -> (a b) | a=2 b=3 c=2 d=3 r=2",
    "O[o r] I[i r] H[h r] : i h -> o | o=5 i=3 h=3 r=4",
    "B[g o r] A[g r i] : (g i) -> (g o) | g=2 o=3 i=3 r=2",
    "U[o r] G[r s h] V[s i] : i h -> o | o=5 i=4 h=3 r=2 s=3",
    "P[o r] Q[r i] S[o s] T[s i] : i -> o | o=5 i=6 r=2 s=2",
    "W[o i] : i -> o | o=3 i=4",
]


@pytest.mark.parametrize("text", NETWORKS)
@pytest.mark.parametrize("sides", ["", "inputs", "outputs", "both", "diagonal"])
def test_the_inverse_solves_the_explicit_normal_equations(text, sides):
    term = parse_network(text)
    signature = term.signature
    m, n = signature.outputs[0], torch.Size(signature.inputs).numel()
    metric = {
        "": Metric(),
        "inputs": Metric(moment(n)),
        "outputs": Metric(None, moment(m)),
        "both": Metric(moment(n), moment(m, seed=4)),
        "diagonal": Metric(moment(n).diagonal().clone(), moment(m)),
    }[sides]
    structure = Structure.of(term)
    cores = {k: gaussian(*s, seed=p) for p, (k, s) in enumerate(structure.shapes.items())}
    moments = fold_moments(metric, term, signature)
    for core in term.equation.cores:
        jacobian = _jacobian(term, cores, core.name)
        left = metric.outputs if metric.outputs is not None else torch.eye(m)
        right = metric.inputs if metric.inputs is not None else torch.eye(n)
        left, right = (torch.diag(x) if x.ndim == 1 else x for x in (left, right))
        normal = jacobian.T @ torch.kron(left.double(), right.double()) @ jacobian
        target = normal @ gaussian(normal.shape[0], seed=9)
        shape = term.shape(core)
        solved = Inverse(gram(term, cores, core.name, moments), {})(target.reshape(shape))
        again = normal @ solved.reshape(-1)
        assert torch.allclose(again, target, rtol=1e-6, atol=1e-6 * float(target.abs().max()))


def _jacobian(term, cores, name):
    shape = cores[name].shape
    basis = torch.eye(shape.numel(), dtype=torch.float64)
    columns = [contract(dense(term), {**cores, name: e.reshape(shape)}).reshape(-1) for e in basis]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("text", NETWORKS)
def test_adjoints_are_transposes(text):
    term = parse_network(text)
    cores = {c.name: gaussian(*term.shape(c), seed=k) for k, c in enumerate(term.equation.cores)}
    weight = gaussian(*term.signature.shape, seed=11)
    for core in term.equation.cores:
        pulled = contract(adjoint(term, core.name), {**cores, "weight": fold(weight, term)})
        expected = _jacobian(term, cores, core.name).T @ weight.reshape(-1)
        assert torch.allclose(pulled.reshape(-1), expected)


def test_als_alone_reaches_the_whitened_optimum():
    weight, metric = gaussian(9, 12), Metric(moment(12, 5), moment(9))
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | o=9 i=12 r=3"))
    start = {"B": gaussian(9, 3, seed=5), "A": gaussian(3, 12, seed=6)}
    best = fit_structure(weight, structure, "svd", metric)
    found = fit_structure(weight, structure, "als", metric, given=start)
    assert found.error == pytest.approx(best.error, rel=1e-3, abs=1e-6)


def test_conjugate_gradients_take_over_where_the_matrix_is_large(monkeypatch):
    weight, metric = gaussian(12, 20), Metric(moment(20))
    text = "L[a b d r] R[b c d r] : (c d) -> (a b) | a=3 b=4 c=5 d=4 r=2"
    structure = Structure.of(parse_network(text))
    direct = fit_structure(weight, structure, "auto", metric, sweeps=30)
    monkeypatch.setattr("tnc.fit.descent.Descent._iterating_flops", lambda *_: 0.0)
    iterated = fit_structure(weight, structure, "auto", metric, sweeps=30)
    assert iterated.error == pytest.approx(direct.error, rel=2e-2)


def test_conjugate_gradients_solve():
    matrix, target = moment(6), gaussian(6)
    found = conjugate_gradients(lambda x: matrix @ x, target, None, 30, 1e-30)
    assert torch.allclose(matrix @ found, target, atol=1e-6)


def test_a_sum_is_fitted_term_by_term_and_jointly():
    text = [
        "B[o r] A[r i] : i -> o | o=8 i=8 r=2",
        "C[k a c] D[k b d] : (c d) -> (a b) | k=1 a=2 b=4 c=4 d=2",
    ]
    structure = Structure.of(*map(parse_network, text))
    cores = {n: gaussian(*s, seed=k) for k, (n, s) in enumerate(structure.shapes.items())}
    weight = reconstruct(structure, cores)
    found = fit_structure(weight, structure)
    alone = fit_structure(weight, Structure.of(structure.terms[0]))
    assert found.error < 0.2 * alone.error
    for metric in (Metric(moment(8)), Metric(moment(8), moment(8, seed=8))):
        assert fit_structure(weight, structure, "auto", metric).error < 0.2


def test_frozen_cores_that_are_given_stay():
    text = ["W[o i]! : i -> o | o=6 i=7", "B[o r] A[r i] : i -> o | o=6 i=7 r=2"]
    structure = Structure.of(*map(parse_network, text))
    base, delta = gaussian(6, 7), gaussian(6, 2, seed=1) @ gaussian(2, 7, seed=2)
    found = fit_structure(base + delta, structure, given={"W": base})
    assert torch.equal(found.cores["W"], base)
    assert found.error < 1e-10
    assert "1 cores held" in found.note


def test_constant_cores_must_be_given():
    structure = Structure.of(parse_network("P[o x]= B[x r] A[r i] : i -> o | o=6 x=6 i=7 r=2"))
    weight = gaussian(6, 7)
    with pytest.raises(FitError, match="core P is constant"):
        fit_structure(weight, structure)
    turned = torch.linalg.qr(gaussian(6, 6, seed=4))[0]
    found = fit_structure(weight, structure, given={"P": turned})
    low_rank = Structure.of(parse_network("B[o r] A[r i] : i -> o | o=6 i=7 r=2"))
    plain = fit_structure(weight, low_rank)
    assert torch.equal(found.cores["P"], turned)
    assert found.error == pytest.approx(plain.error, rel=1e-3)


def test_bad_given_cores_are_refused():
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | o=6 i=7 r=2"))
    with pytest.raises(FitError, match="given core B has shape"):
        fit_structure(gaussian(6, 7), structure, given={"B": gaussian(2, 6)})
    with pytest.raises(FitError, match="no such core"):
        fit_structure(gaussian(6, 7), structure, given={"Z": gaussian(2, 6)})
    with pytest.raises(FitError, match="starts from nothing"):
        fit_structure(gaussian(6, 7), structure, "svd", given={"B": gaussian(6, 2)})


def test_hadamard_product_of_low_ranks():
    text = "P[o r] Q[r i] S[o s] T[s i] : i -> o | o=8 i=9 r=2 s=2"
    structure = Structure.of(parse_network(text))
    cores = {n: gaussian(*s, seed=k) for k, (n, s) in enumerate(structure.shapes.items())}
    found = fit_structure(reconstruct(structure, cores), structure, seed=1)
    assert found.error < 0.35
    assert found.error < fit_structure(gaussian(8, 9), structure).error


def test_padding_is_free():
    text = "A[k a c] C[k b d] : (c d) -> (a b) | a=2 b=4 c=3 d=3 k=2"
    structure = Structure.of(parse_network(text), signature=Signature((7,), (8,)))
    cores = {n: gaussian(*s, seed=k) for k, (n, s) in enumerate(structure.shapes.items())}
    weight = reconstruct(structure, cores)
    as_zeros = fit_structure(weight, structure, "van-loan").error
    assert as_zeros > 1e-3
    assert fit_structure(weight, structure, "als").error < 0.1 * as_zeros


def test_fold_and_crop_are_inverse():
    term = parse_network("L[a b d r] R[b c d r] : (c d) -> (a b) | a=2 b=3 c=2 d=3 r=2")
    signature = Signature((5,), (5,))
    weight = gaussian(5, 5)
    assert torch.equal(crop(fold(weight, term), term, signature), weight)


def test_tails_refuse_bonds_that_do_not_cut():
    term = parse_network("O[o r] I[i r] H[h r] : i h -> o | o=5 i=3 h=3 r=4")
    with pytest.raises(FitError, match="does not part"):
        tails(gaussian(5, 3, 3), term, "r")


def test_reconstruct_matches_a_plain_einsum():
    term = parse_network("B[g o r] A[g r i] : (g i) -> (g o) | g=2 o=3 i=4 r=2")
    b, a = gaussian(2, 3, 2), gaussian(2, 2, 4, seed=1)
    made = reconstruct(Structure.of(term), {"B": b, "A": a})
    assert torch.allclose(made, torch.block_diag(*(b @ a)))
    assert relative_error(made, made, term.signature) == 0
