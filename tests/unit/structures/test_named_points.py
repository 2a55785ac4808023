"""Families meet each other where theory says that they are the same."""

from __future__ import annotations

import pytest
import torch

from tnc.derive import parameters
from tnc.errors import PlanError
from tnc.fit import fit_structure
from tnc.net import Signature
from tnc.structures import families
from tnc.structures.hierarchical_tucker import parse_tree

LINEAR = Signature((16,), (36,))


def weight(signature: Signature) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(signature.shape, generator=generator, dtype=torch.float64)


def fitted(name: str, options: dict[str, object], rank: int, signature: Signature = LINEAR):
    family = families.get(name)(**options)
    template = family.template(signature)
    structure = template.at(dict.fromkeys(template.bound, rank))
    return parameters(structure), fit_structure(weight(signature), structure, family.fit).error


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("einsum", {"theta": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}), ("low-rank", {})),
        (("einsum", {"theta": (0.5, 0.5, 0.0, 0.5, 0.5, 0.0)}), ("kronecker", {})),
        (("einsum", {"theta": (0.5, 0.5, 0.0, 0.5, 0.5, 0.0)}), ("tensor-train", {})),
        (("einsum", {}), ("block-tensor-train", {})),
        (("grouped-low-rank", {"groups": 1}), ("low-rank", {})),
        (("hierarchical-tucker", {"factors": 2}), ("tensor-train", {})),
        (("hierarchical-tucker", {"factors": 1}), ("low-rank", {})),
        (("blast", {"blocks": 1}), ("low-rank", {})),
        (("block-term", {"blocks": 1}), ("tucker", {"factors": 2})),
    ],
    ids=str,
)
def test_named_points(one, other) -> None:
    mine, theirs = fitted(*one, 2), fitted(*other, 2)
    assert mine[1] == pytest.approx(theirs[1], rel=1e-5)
    if one[0] != "blast":  # its scales are parameters that low rank has not
        assert mine[0] == theirs[0]


@pytest.mark.parametrize("scheme", [0, 1, 2, 3])
def test_fold_schemes_of_a_grouped_convolution(scheme: int) -> None:
    signature = Signature((8,), (6, 3, 2))
    template = families.get("grouped-low-rank")(groups=2, scheme=scheme).template(signature)
    b, a = template.equation.cores
    held = [{n for n in core.indices if n in ("h", "w")} for core in (b, a)]
    on_b = [set(), {"w"}, {"h"}, {"h", "w"}][scheme]
    assert held == [on_b, {"h", "w"} - on_b]
    _, error = fitted("grouped-low-rank", {"groups": 2, "scheme": scheme}, 2, signature)
    order = {0: (0, 1, 2, 3), 1: (0, 3, 1, 2), 2: (0, 2, 1, 3), 3: (0, 2, 3, 1)}[scheme]
    rows = 8 * {0: 1, 1: 2, 2: 3, 3: 6}[scheme]
    tail = 0.0
    for part in weight(signature).split(3, dim=1):
        values = torch.linalg.svdvals(part.permute(order).reshape(rows, -1))
        tail += float(values[2:].square().sum())
    assert error == pytest.approx((tail / float(weight(signature).square().sum())) ** 0.5)


def test_blocks_of_a_plain_fit_are_the_weights_own() -> None:
    structure = families.get("block-diagonal")(blocks=2).template(LINEAR).full()
    found = fit_structure(weight(LINEAR), structure).cores["A"]
    for k in range(2):
        own = weight(LINEAR)[8 * k : 8 * k + 8, 18 * k : 18 * k + 18]
        assert torch.allclose(found[k], own)


def test_auto_offers_several_groups() -> None:
    offered = families.get("grouped-low-rank")().variants(LINEAR)
    assert [family.groups for family in offered] == [1, 2, 4, 9]
    assert families.get("grouped-low-rank")(groups=3).variants(LINEAR)[0].groups == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("((o1) (i1)", "not one pair"),
        ("(o1) (i1)", "not one pair"),
        ("((o1) ())", "empty core at character 8"),
        ("((o1) , (i1))", "unexpected ',' at character 7"),
        ("o1", "unexpected 'o1' at character 1"),
    ],
)
def test_a_tree_that_cannot_be_read_is_told(text: str, told: str) -> None:
    with pytest.raises(PlanError, match="tree") as caught:
        parse_tree(text)
    assert told in caught.value.message


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("hierarchical-tucker", {"factors": 1, "tree": "((o) (i2))"}, "name each leg once"),
        ("einsum", {"theta": (0.5, 0.5)}, "theta has 2 numbers"),
        ("einsum", {"theta": (0.5, 0.0, 0.0, 0.5, 0.5, 0.0)}, "sum to 0.5"),
        ("grouped-low-rank", {"groups": 40}, "40 groups of 36 inputs"),
        ("blast", {"blocks": 17}, "17 x 17 blocks"),
        ("butterfly", {"factors": 1}, "2 or more"),
        ("block-term", {"blocks": 0}, "blocks is 0"),
    ],
)
def test_refusals_name_the_value(name: str, options: dict[str, object], told: str) -> None:
    assert told in families.get(name)(**options).refuses(LINEAR)
    stack = Signature((2, 16), (36,))
    assert "output axes" in families.get("butterfly")().refuses(stack)
