"""Preconditioner contractions, blocks and inverse roots, against dense einsums."""

from __future__ import annotations

import pytest
import torch

from tests.unit.optim.given import near
from tnc.derive.preconditioning import mode_gram, on_modes
from tnc.errors import BindError
from tnc.kernels.einsums import lower
from tnc.optim.blocks import blocks_of
from tnc.optim.roots import inverse_root
from tnc.optim.rules.asgo import Asgo


def drawn(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_contractions_are_the_dense_einsums() -> None:
    tensor = drawn(2, 4, 3, 5)
    for mode, spec in enumerate(["bijk,bIjk->biI", "bijk,biJk->bjJ", "bijk,bijK->bkK"]):
        found = lower(mode_gram(tuple(tensor.shape), mode)).run([tensor, tensor])
        near(found, torch.einsum(spec, tensor, tensor), 1e-14)
    matrices = [drawn(2, size, size) for size in tensor.shape[1:]]
    found = lower(on_modes(tuple(tensor.shape), (0, 1, 2))).run([tensor, *matrices])
    near(found, torch.einsum("bijk,biI,bjJ,bkK->bIJK", tensor, *matrices), 1e-14)
    found = lower(on_modes(tuple(tensor.shape), (1,))).run([tensor, matrices[1]])
    near(found, torch.einsum("bijk,bjJ->biJk", tensor, matrices[1]), 1e-14)


def test_their_order_is_planned() -> None:
    """Three products on a tensor: one after the other, never matrix by matrix."""
    order = on_modes((1, 30, 20, 10), (0, 1, 2)).order
    assert order.flops == 2 * 6000 * (30 + 20 + 10)
    assert len(order.steps) == 3


@pytest.mark.parametrize("shape", [(7,), (1, 1), (), (5, 12), (9, 1, 14), (5, 6, 7)])
def test_blocks_cut_and_join(shape) -> None:
    blocks = blocks_of(shape, 4)
    tensor = drawn(*shape)
    near(blocks.join(blocks.cut(tensor)), tensor, 0)
    assert all(size <= 4 for size in blocks.sizes)
    for mode, axis in enumerate(blocks.axes):
        rest = [k for k in range(len(shape)) if k != axis]
        whole = torch.tensordot(tensor, tensor, (rest, rest))
        near(
            blocks_of(shape, 20).whole_gram(
                blocks_of(shape, 20).gram(blocks_of(shape, 20).cut(tensor), mode), mode
            ),
            whole,
            1e-14,
        )
        found = blocks.whole_gram(blocks.gram(blocks.cut(tensor), mode), mode)
        size = blocks.sizes[mode]
        place = torch.arange(shape[axis]) // size
        near(found, whole * (place[:, None] == place), 1e-13)  # between blocks: unknown
        again = blocks.whole_gram(blocks.split_gram(found, mode), mode)
        near(again, found, 1e-14)


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_inverse_roots_by_both_methods(order) -> None:
    made = drawn(2, 9, 30)
    grams = made @ made.mT
    for method, limit in [("eigh", 1e-12), ("newton", 1e-10)]:
        root = inverse_root(grams, order, 0.0, method)
        near(
            torch.linalg.matrix_power(root, order) @ grams,
            torch.eye(9).expand(2, 9, 9).double(),
            limit,
        )
        near(
            inverse_root(16 * grams, order, 1e-3, method) * 16 ** (1 / order),
            inverse_root(grams, order, 1e-3, method),
            limit,
        )


def test_roots_of_singular_and_empty_matrices() -> None:
    made = drawn(6, 2)
    grams = torch.stack([made @ made.T, torch.zeros(6, 6, dtype=torch.float64)])
    exact = inverse_root(grams, 4, 1e-6)
    newton = inverse_root(grams, 4, 1e-6, "newton")
    near(newton, exact, 1e-8)
    assert not bool(exact[1].any()) and not bool(newton[1].any())
    single = inverse_root(grams.float(), 4, 1e-4, "newton").double()
    near(single, inverse_root(grams, 4, 1e-4), 1e-2)
    with pytest.raises(BindError, match="roots is 'svd'"):
        Asgo([torch.nn.Parameter(torch.zeros(2, 2))], roots="svd")
