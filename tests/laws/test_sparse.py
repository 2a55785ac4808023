"""Sparse cores: the language, the optimum, the look-up, the artifact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tnc.derive import cost, parameters
from tnc.derive.cost import Work
from tnc.errors import EquationError, KernelError
from tnc.fit import Metric, fit_structure, reconstruct
from tnc.net import Structure, from_json, parse_network, to_json
from tnc.nn import EmbeddingView, LinearView, StructuredLayer
from tnc.nn.sparse import Kept

TEXT = "S[o i]#n : i -> o | i=8 n=5 o=4"


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_text_counts_and_costs() -> None:
    structure = Structure.of(parse_network(TEXT))
    assert str(structure) == TEXT
    assert from_json(to_json(structure)) == structure
    assert parameters(structure) == 5 and structure.stored == {"S": 5}
    found = cost(structure, Work("linear", 10))
    assert found.bytes == 5 * 4 + 5 * 4 and found.flops == 2 * 10 * 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("S[o i]#n : i -> o | i=2 n=9 o=2", "4 entries, n=9"),
        ("S[o i]#i : i -> o | i=2 o=2", "i counts the entries"),
        ("S[o r]#n T[r i]#n : i -> o | i=2 o=2 r=2 n=1", "n counts the entries"),
        ("S[o i]#n : i -> o | i=2 o=2", "no size for n"),
    ],
)
def test_wrong_counts_are_told(text: str, told: str) -> None:
    with pytest.raises(EquationError, match=told):
        parse_network(text)


def test_a_core_with_too_many_entries_is_refused() -> None:
    structure = Structure.of(parse_network(TEXT))
    with pytest.raises(KernelError, match="32 entries that are not zero, it stores 5"):
        StructuredLayer(structure, LinearView(), {"S": torch.ones(4, 8)})


def test_the_plain_fit_is_the_largest_entries_and_the_metric_fit_is_stationary() -> None:
    structure = Structure.of(parse_network("S[o i]#n : i -> o | i=12 n=30 o=10"))
    weight, rows = draw(10, 12), draw(40, 12, seed=1) @ draw(12, 12, seed=2)
    plain = reconstruct(structure, fit_structure(weight, structure).cores)
    dropped = weight[plain == 0].abs().max()
    assert int((plain != 0).sum()) == 30 and torch.equal(plain[plain != 0], weight[plain != 0])
    assert dropped <= plain[plain != 0].abs().min()
    moment = rows.T @ rows
    fitted = fit_structure(weight, structure, "sparse", Metric(moment))
    found = reconstruct(structure, fitted.cores)
    slope = ((weight - found) @ moment)[found != 0]
    assert float(slope.abs().max()) < 1e-4 * float((weight @ moment).abs().max())
    scored = torch.zeros_like(weight)
    order = (weight.square() * moment.diagonal()).flatten().argsort(descending=True)[:30]
    scored.view(-1)[order] = weight.view(-1)[order]
    metric = Metric(moment)
    unrefitted = metric.norm(weight - scored, structure.signature)
    assert metric.norm(weight - found, structure.signature) < unrefitted


def test_outliers_beside_low_rank_are_found() -> None:
    weight = draw(30, 2) @ draw(2, 40, seed=1)
    weight.view(-1)[torch.randperm(1200, generator=torch.Generator().manual_seed(0))[:20]] += 30.0
    text = "B[o r] A[r i] : i -> o | i=40 o=30 r=2"
    both = Structure.of(parse_network(text), parse_network("S[o i]#n : i -> o | i=40 n=20 o=30"))
    assert fit_structure(weight, both).error < 1e-2
    assert fit_structure(weight, Structure.of(parse_network(text))).error > 0.3


def test_a_look_up_is_the_row_and_only_values_train() -> None:
    structure = Structure.of(parse_network("S[o i]#n : i -> o | i=6 n=15 o=9"))
    made = StructuredLayer.initialised(structure, EmbeddingView(), 1.0, dtype=torch.float64)
    ids = torch.tensor([[0, 3, 8], [8, 1, 5]])
    out = made(ids)
    assert torch.equal(out, made.weight[ids])
    (grad,) = torch.autograd.grad(out.sum(), made.cores["S"])
    (want,) = torch.autograd.grad(made.weight[ids].sum(), made.cores["S"])
    assert torch.equal(grad, want)
    assert [p.shape for p in made.parameters()] == [(15,)]
    assert made.half().positions["S"].dtype == torch.int32


def test_products_by_rows_of_entries_are_the_dense_products() -> None:
    structure = Structure.of(parse_network("S[o i]#n : i -> o | i=30 n=40 o=20"))
    made = StructuredLayer.initialised(structure, LinearView(), 1.0, dtype=torch.float64)
    x = draw(2, 3, 30)
    with torch.no_grad():
        assert Kept(made.cores["S"], made.positions["S"], (20, 30)).multiplies(x)
        assert torch.allclose(made(x), x @ made.weight.T, atol=1e-12)
        assert made(x[:, :0]).shape == (2, 0, 20)
    assert made(x).requires_grad


def test_sparse_weights_are_planned_saved_and_reloaded(tmp_path) -> None:
    torch.manual_seed(0)
    build = lambda: nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 40), nn.Linear(40, 24))  # noqa: E731
    rules = [{"match": "0", "structure": "sparse", "keep": 0.5}]
    rules.append({"match": "*", "structure": "low-rank + sparse", "keep": 0.6})
    ids = torch.randint(0, 50, (8, 5))
    made = tnc.compile(build(), tnc.Spec(version=1, rules=rules), example=ids)
    again = tnc.load(tnc.save(made, tmp_path / "out"), model=build())
    assert torch.equal(again(ids), made.model(ids))
    assert made.model[0].positions["S"].numel() == 400
    assert torch.allclose(tnc.densify(made.model)(ids), made.model(ids), atol=1e-5)
