"""Stacks of matrices: every family's structure for each of them, cores of their own or shared."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tests.laws.data import members
from tnc.decide.options import build, print_option
from tnc.fit import fit_structure, reconstruct
from tnc.net import Signature
from tnc.nn import StackView, StructuredLayer, view_from_json
from tnc.structures import families

STACK = Signature((3, 8), (6,))
INNER = [
    (name, family)
    for name, family in members()
    if not families.get("stacked")(of=family).refuses(STACK)
]


@pytest.mark.parametrize("named", INNER, ids=lambda named: named[0])
def test_a_stack_is_a_structure_for_each_matrix(named) -> None:
    family = families.get("stacked")(of=named[1])
    assert family.refuses(STACK) == "" and family.refuses(Signature((8,), (6,)))
    assert build(families, print_option(families, family)) == family
    template = family.template(STACK)
    structure = template.at({name: min(2, bound) for name, bound in template.bounds})
    inner = named[1].template(Signature((8,), (6,)))
    alone = inner.at({name: min(2, bound) for name, bound in inner.bounds})
    torch.manual_seed(0)
    cores = {n: torch.randn(s, dtype=torch.float64) for n, s in structure.shapes.items()}
    whole = reconstruct(structure, cores)
    for e in range(3):
        one = reconstruct(alone, {name: core[e] for name, core in cores.items()})
        torch.testing.assert_close(whole[e], one)
    for transposed in (False, True):
        layer = StructuredLayer(structure, StackView(transposed), cores)
        x = torch.randn(3, 5, 6, dtype=torch.float64)
        torch.testing.assert_close(layer(x), torch.einsum("eni,eoi->eno", x, whole))
        torch.testing.assert_close(layer.weight, whole.mT if transposed else whole)
        assert view_from_json(layer.view.as_json()) == layer.view


@pytest.mark.parametrize(("of", "shared"), product(("low-rank",), ((), ("A",), ("B",))))
def test_full_rank_is_exact(of: str, shared: tuple[str, ...]) -> None:
    family = families.get("stacked")(of=build(families, of), shared=shared)
    torch.manual_seed(1)
    weight = torch.randn(3, 8, 6, dtype=torch.float64)
    structure = family.template(STACK).full()
    found = fit_structure(weight, structure, "auto")
    assert float((reconstruct(structure, found.cores) - weight).norm()) < 1e-9
    carried = {core.name for core in structure.terms[0].equation.cores if "e" in core.indices}
    assert carried == {"A", "B"} - set(shared)


def test_what_cannot_be_stacked_is_told() -> None:
    stacked, low_rank = families.get("stacked"), build(families, "low-rank")
    assert "no core 'C'" in stacked(of=low_rank, shared=("C",)).refuses(STACK)
    assert "every core is shared" in stacked(of=low_rank, shared=("A", "B")).refuses(STACK)
    assert "sum" in stacked(of=build(families, "low-rank + kronecker")).refuses(STACK)
    assert build(families, "tucker").refuses(STACK).startswith("it has 2 output axes")
    with pytest.raises(Exception, match="no structure is named"):
        build(families, {"kind": "stacked", "of": "low-rnk"})
