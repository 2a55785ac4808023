"""Neighbours become one layer where that costs no more; dropout keeps them apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.compiled import spec
from tests.laws.data import structures
from tests.laws.test_structures import layer, small
from tests.unit.rewrite.test_manager import subject_of
from tests.unit.rewrite.test_passes import gap, run
from tnc.derive.cost import Work, cost
from tnc.derive.merging import merged
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer
from tnc.rewrite.merging import merge_layers, plan_merge, structure_of

LINEAR = [(n, f, s) for n, f, s in structures() if len(s.inputs) == len(s.outputs) == 1]
each = pytest.mark.parametrize(
    ("family", "signature"), [(f, s) for _, f, s in LINEAR], ids=[name for name, _, _ in LINEAR]
)


def low_rank(o: int, i: int, r: int) -> StructuredLayer:
    structure = Structure.of(parse_network(f"B[o r] A[r i] : i -> o | i={i} o={o} r={r}"))
    return layer(structure, LinearView()).float()


@each
@pytest.mark.parametrize("first", [True, False])
def test_the_product_of_any_structure_and_a_dense_layer(family, signature, first: bool) -> None:
    made = layer(small(family, signature), LinearView())
    if made.structure.stored:
        return
    torch.manual_seed(0)
    inputs, outputs = signature.inputs[0], signature.outputs[0]
    dense = nn.Linear(outputs, outputs) if first else nn.Linear(inputs, inputs)
    pair = (made, dense.double()) if first else (dense.double(), made)
    plan = plan_merge(*pair)
    if plan is None:
        return
    x = torch.randn(3, inputs, dtype=torch.float64)
    found = merge_layers(plan, *pair)
    wanted = pair[1](pair[0](x))
    assert float((found(x) - wanted).detach().norm()) <= 1e-10 * float(wanted.detach().norm())
    work = Work("linear", 128)
    before = [cost(structure_of(m), work) for m in pair]
    after = cost(found.structure, work)
    assert after.params <= sum(c.params for c in before)
    assert after.flops <= sum(c.flops for c in before)


def test_the_smaller_rank_keeps_its_cores() -> None:
    a, b = low_rank(32, 32, 4), low_rank(32, 32, 6)
    for pair, keeps, core in (((a, b), "first", "A"), ((b, a), "second", "B")):
        plan = plan_merge(*pair)
        assert plan is not None and plan.keeps == keeps and plan.cores == (core,)
        assert merge_layers(plan, *pair).cores[core] is a.cores[core]
        assert plan.structure.shapes[plan.name] == (32, 4) or plan.keeps == "second"


def test_wide_layers_are_not_merged() -> None:
    narrow = structure_of(nn.Linear(2, 9))
    assert merged(structure_of(nn.Linear(9, 2)), narrow, 16) is None


class Pair(nn.Module):
    """Two layers; `p` is the dropout between them."""

    def __init__(self, p: float | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)
        self.end, self.p = nn.Linear(24, 4), p

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.p is not None:
            x = nn.functional.dropout(x, self.p, self.training)
        return self.end(torch.relu(self.b(x)))


def compiled(model: nn.Module, *passes: str) -> tnc.api.Compiled:
    torch.manual_seed(0)
    rule = {"match": ["a", "b"], "structure": "low-rank", "keep": 0.5}
    x = torch.randn(6, 24)
    return tnc.compile(model, spec(rule, passes=("find-sites", "factorize", *passes)), example=x)


@pytest.mark.parametrize("p", [None, 0.0])
def test_two_structured_layers_become_one(p: float | None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Pair(p).eval()
    plain, made = compiled(model), compiled(model, "merge-adjacent")
    assert made.records[-1].edits[0].startswith("merged b into a: ")
    assert type(made.model.b) is nn.Identity
    x = torch.randn(5, 24)
    assert gap(plain.model, made.model, x) < 1e-5
    (reparam,) = made.reparams
    assert reparam.old == ("a.weight", "b.weight")
    names = dict(made.model.named_parameters())
    assert all(name in names for _, name in reparam.new)
    loaded = tnc.load(tnc.save(made, tmp_path / "a"), model=Pair(p))
    assert gap(loaded, made.model, x) < 1e-6 and type(loaded.b) is nn.Identity


def test_dropout_between_keeps_layers_apart() -> None:
    made = compiled(Pair(0.5).eval(), "merge-adjacent")
    assert made.records[-1].edits == (
        "left a and b: something is between them in training mode (dropout?)",
    )
    net = nn.Sequential(nn.Linear(9, 8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    kept, told = run(subject_of(net, torch.randn(2, 9)), "merge-linear")
    assert told == ("left 0 and 2: something is between them in training mode (dropout?)",)
    assert type(kept[2]) is nn.Linear


def told(change: Callable[[nn.Module], object]) -> str:
    made = compiled(Pair().eval())
    change(made.model)
    subject = subject_of(Pair().eval(), torch.randn(2, 24))
    subject = replace(subject, model=made.model, reparams=made.reparams)
    return run(subject, "merge-adjacent")[1][0]


def tie(model: nn.Module) -> None:
    model.b.cores["A"] = model.a.cores["A"]


def thin(model: nn.Module) -> None:
    structure = Structure.of(parse_network("S[o i]#n : i -> o | i=24 o=24 n=50"))
    model.b = StructuredLayer(structure, LinearView(), {"S": torch.zeros(24, 24)})


def test_what_is_left_alone_is_said() -> None:
    frozen = "one is frozen, in part or as a whole, and the other is not"
    reasons: dict[str, Callable[[nn.Module], object]] = {
        "another layer holds one of their parameters too": tie,
        "one has sparse cores": thin,
        frozen: lambda model: model.a.requires_grad_(False),
        "a hook watches one": lambda model: model.b.register_forward_hook(lambda *_: None),
    }
    for reason, change in reasons.items():
        assert told(change) == f"left a and b: {reason}"
