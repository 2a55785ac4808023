"""Tensor contraction and regression layers, and dropout of bonds."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tnc.errors import KernelError
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer, TensorContraction, TensorDropout, TensorRegression
from tnc.nn.contraction_layers import regression_structure
from tnc.nn.dropout import dropped_bonds


def test_contraction_is_one_matrix_a_mode() -> None:
    layer = TensorContraction((5, 4, 3), (2, 3, 1), bias=True)
    with torch.no_grad():
        layer.layer.bias.normal_()
    x = torch.randn(7, 5, 4, 3)
    u = [layer.layer.cores[f"U{k}"] for k in (1, 2, 3)]
    want = torch.einsum("nabc,xa,yb,zc->nxyz", x, *u)
    assert torch.allclose(layer(x), want + layer.layer.bias.view(2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 2)])
def test_regression_is_the_inner_product_with_the_weight(shape: tuple[int, ...]) -> None:
    made = regression_structure(shape, 6, [2] * len(shape), 3)
    layer = TensorRegression(shape, 6, made)
    x = torch.randn(9, *shape)
    want = x.flatten(1) @ layer.layer.weight.T + layer.layer.bias
    assert torch.allclose(layer(x), want, atol=1e-5)
    assert sum(p.numel() for p in layer.parameters()) < layer.layer.weight.numel() + 6 + 60


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(KernelError, match="do not fit modes"):
        TensorContraction((5, 4), (2,))
    with pytest.raises(KernelError, match="the regression is 3 <- 20"):
        TensorRegression((5, 4), 3, regression_structure((5, 4), 6, (2, 2), 3))
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=8 o=4 r=1"))
    layer = StructuredLayer.initialised(structure, LinearView(), 0.1)
    with pytest.raises(KernelError, match="probability"):
        TensorDropout(layer, 1.0)


TEXTS = (
    "B[o r] A[r i] : i -> o | i=3 o=4 r=3",
    "U[o r] G[r s] V[s i] : i -> o | i=3 o=4 r=2 s=1",
    "A[o r] B[i r] C[j r] : (i j) -> o | i=3 j=2 o=4 r=3",
)


@pytest.mark.parametrize("text", TEXTS)
def test_the_expected_weight_is_the_weight(text: str) -> None:
    """The expectation over all masks, each with its probability, without sampling."""
    structure, p = Structure.of(parse_network(text)), 0.3
    layer = StructuredLayer.initialised(structure, LinearView(), 1.0, dtype=torch.float64)
    (term,) = structure.terms
    bonds = dropped_bonds(term)
    assert all(term.size[bond] > 1 for bond in bonds)
    sizes = [term.size[bond] for bond in bonds]
    wrapped, total = TensorDropout(layer, p), torch.zeros_like(layer.weight)
    for kept in product((0.0, 1.0), repeat=sum(sizes)):
        masks = iter(torch.split(torch.tensor(kept, dtype=torch.float64), sizes))
        chance = torch.tensor([1 - p if one else p for one in kept]).prod()
        original = torch.Tensor.bernoulli_
        torch.Tensor.bernoulli_ = lambda self, q, masks=masks: next(masks).clone()  # type: ignore
        try:
            total = total + chance * layer._rebuild.run(wrapped.thinned())
        finally:
            torch.Tensor.bernoulli_ = original  # type: ignore
    assert torch.allclose(total, layer.weight, atol=1e-6)


def test_eval_is_the_layer_and_training_is_not() -> None:
    structure = Structure.of(parse_network(TEXTS[0]))
    layer = StructuredLayer.initialised(structure, LinearView(), 1.0)
    x, wrapped = torch.randn(5, 3), TensorDropout(layer, 0.5)
    torch.manual_seed(0)
    assert not torch.allclose(wrapped(x), layer(x))
    wrapped(x).sum().backward()
    assert torch.equal(wrapped.eval()(x), layer(x))
