"""Special fits against independent decompositions (numpy, tensorly)."""

from __future__ import annotations

import numpy
import pytest
import torch

from tnc.fit import fit_structure, reconstruct
from tnc.fit.hosvd import orthogonal_iteration
from tnc.net import Signature, Structure, parse_network

tensorly = pytest.importorskip("tensorly")


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def structure(text: str, *shape: int) -> Structure:
    return Structure.of(parse_network(text), signature=Signature(shape[:1], shape[1:]))


def error(weight: torch.Tensor, made: torch.Tensor) -> float:
    return float((weight - made).norm() / weight.norm())


def tail(matrix: torch.Tensor, rank: int) -> float:
    return float((numpy.linalg.svd(matrix.numpy(), compute_uv=False)[..., rank:] ** 2).sum())


def test_van_loan_is_the_svd_of_the_rearranged_weight():
    weight = gaussian(12, 20)
    made = structure("A[k a c] C[k b d] : (c d) -> (a b) | a=3 b=4 c=5 d=4 k=3", 12, 20)
    found = fit_structure(weight, made, "van-loan")
    expected = tail(weight.reshape(3, 4, 5, 4).permute(0, 2, 1, 3).reshape(15, 16), 3)
    assert found.error**2 * float(weight.square().sum()) == pytest.approx(expected, rel=1e-10)


def test_one_kronecker_product_needs_no_bond():
    one, two = gaussian(3, 5), gaussian(4, 2, seed=1)
    made = structure("A[a c] C[b d] : (c d) -> (a b) | a=3 b=4 c=5 d=2", 12, 10)
    assert fit_structure(torch.kron(one, two), made, "van-loan").error < 1e-14


def test_block_svd_is_an_svd_a_block():
    weight = gaussian(12, 20)
    text = "L[a b d r] R[b c d r] : (c d) -> (a b) | a=3 b=4 c=5 d=4 r=2"
    found = fit_structure(weight, structure(text, 12, 20), "block-svd")
    blocks = weight.reshape(3, 4, 5, 4).permute(1, 3, 0, 2)
    assert found.error**2 * float(weight.square().sum()) == pytest.approx(tail(blocks, 2))


def test_block_diagonal_low_rank_is_an_svd_a_block():
    weight = torch.block_diag(*gaussian(3, 4, 5))
    text = "B[g o r] A[g r i] : (g i) -> (g o) | g=3 o=4 i=5 r=2"
    found = fit_structure(weight, structure(text, 12, 15), "block-svd")
    whole = float(weight.square().sum())
    assert found.error**2 * whole == pytest.approx(tail(gaussian(3, 4, 5), 2))
    assert fit_structure(weight, structure(text.replace("r=2", "r=4"), 12, 15)).error < 1e-14


def test_tucker_is_no_worse_than_tensorly():
    from tensorly.decomposition import partial_tucker

    weight = gaussian(10, 8, 3, 3)
    text = "U[o r] G[r s h w] V[s i] : i h w -> o | o=10 i=8 h=3 w=3 r=4 s=3"
    found = fit_structure(weight, structure(text, 10, 8, 3, 3), "hosvd")
    (core, factors), _ = partial_tucker(
        weight.numpy(), rank=[4, 3], modes=[0, 1], n_iter_max=200, tol=1e-12
    )
    made = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    assert found.error <= error(weight, torch.from_numpy(made)) * 1.005


def test_folded_tucker_is_no_worse_than_tensorly():
    from tensorly.decomposition import tucker

    weight = gaussian(12, 20)
    text = (
        "A[a p] B[b q] G[p q r s] C[r c] D[s d] : (c d) -> (a b) | a=3 b=4 c=5 d=4 p=2 q=2 r=3 s=2"
    )
    found = fit_structure(weight, structure(text, 12, 20), "hosvd")
    folded = weight.reshape(3, 4, 5, 4)
    made = tucker(folded.numpy(), rank=[2, 2, 3, 2], n_iter_max=200, tol=1e-12).to_tensor()
    assert found.error <= error(folded, torch.from_numpy(made)) * 1.005


def test_orthogonal_iteration_improves_on_its_start():
    tensor = gaussian(7, 8, 9)
    bases, sweeps, settled = orthogonal_iteration(tensor, [3, 3, 3])
    assert settled and sweeps > 1
    kept = float(torch.einsum("abc,ap,bq,cr->pqr", tensor, *bases).square().sum())
    first = [
        torch.linalg.svd(tensor.movedim(k, 0).reshape(n, -1))[0][:, :3]
        for k, n in enumerate(tensor.shape)
    ]
    assert kept > float(torch.einsum("abc,ap,bq,cr->pqr", tensor, *first).square().sum())


def test_train_is_tensorlys_and_within_its_bound():
    from tensorly.decomposition import tensor_train

    weight = gaussian(10, 8, 3, 3)
    text = "A[i r] H[r h s] W[s w t] O[t o] : i h w -> o | o=10 i=8 h=3 w=3 r=4 s=6 t=5"
    found = fit_structure(weight, structure(text, 10, 8, 3, 3), "train-svd")
    moved = weight.permute(1, 2, 3, 0)
    made = tensor_train(moved.contiguous().numpy(), rank=[1, 4, 6, 5, 1]).to_tensor()
    assert found.error == pytest.approx(error(moved, torch.from_numpy(made)), rel=1e-8)
    cuts = zip((1, 2, 3), (4, 6, 5))
    bound = sum(tail(moved.reshape(int(numpy.prod(moved.shape[:k])), -1), r) for k, r in cuts)
    assert found.error**2 * float(weight.square().sum()) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("rank", [2, 6, 15])
def test_cp_is_no_worse_than_tensorly(rank):
    from tensorly.decomposition import parafac

    weight = gaussian(9, 8, 3, 3)
    text = f"O[o r] I[i r] H[h r] W[w r] : i h w -> o | o=9 i=8 h=3 w=3 r={rank}"
    found = fit_structure(weight, structure(text, 9, 8, 3, 3), "cp-als")
    made = parafac(weight.numpy(), rank, n_iter_max=200, tol=1e-10, random_state=0).to_tensor()
    assert found.error <= error(weight, torch.from_numpy(numpy.asarray(made))) * 1.02


def test_cp_finds_planted_components():
    factors = [gaussian(n, 3, seed=n) for n in (9, 8, 5)]
    weight = torch.einsum("or,ir,hr->oih", *factors)
    text = "O[o r] I[i r] H[h r] : i h -> o | o=9 i=8 h=5 r=3"
    assert fit_structure(weight, structure(text, 9, 8, 5), "cp-als").error < 1e-4


def test_diverging_components_are_told():
    a, b = gaussian(6, seed=1), gaussian(6, seed=2)
    one = torch.einsum("i,j,k->ijk", a, a, b)
    weight = one + one.permute(0, 2, 1) + one.permute(2, 0, 1)  # border rank 2, rank 3
    text = "O[o r] I[i r] H[h r] : i h -> o | o=6 i=6 h=6 r=2"
    found = fit_structure(weight, structure(text, 6, 6, 6), "cp-als")
    assert found.error < 0.1
    from tnc.fit.canonical import Canonical

    cores = [found.cores[n] for n in "OIH"]
    assert Canonical(cores, 0.0, 0, True).growth() > 5


@pytest.mark.parametrize("ranks", [(2, 2, 2), (2, 4, 3)])
def test_ring_is_no_worse_than_tensorly(ranks):
    from tensorly.decomposition import tensor_ring

    weight = gaussian(9, 8, 7)
    p, q, r = ranks
    text = f"O[p o q] I[q i r] H[r h p] : i h -> o | o=9 i=8 h=7 p={p} q={q} r={r}"
    found = fit_structure(weight, structure(text, 9, 8, 7), "ring-als")
    try:
        made = tensor_ring(weight.numpy(), rank=[p, q, r, p]).to_tensor()
    except ValueError:
        pytest.skip("tensorly's TR-SVD does not take these ranks")
    assert found.error <= error(weight, torch.from_numpy(made)) * 1.02


def test_a_planted_ring_is_found():
    made = structure("O[p o q] I[q i r] H[r h p] : i h -> o | o=6 i=7 h=8 p=2 q=2 r=2", 6, 7, 8)
    cores = {n: gaussian(*s, seed=k) for k, (n, s) in enumerate(made.shapes.items())}
    assert fit_structure(reconstruct(made, cores), made, "ring-als").error < 1e-3
