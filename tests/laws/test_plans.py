"""Laws of planning: every family is reached from a spec, climbs a ladder and meets a budget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tests.compiled import spec
from tests.laws.data import members
from tnc.decide.options import print_option
from tnc.net import Signature
from tnc.structures import families

FIRST = {type(member): (name, member) for name, member in reversed(list(members()))}
MEMBERS = [pair for kind, pair in FIRST.items() if kind is not families.get("free-form")]


def model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Sequential(nn.Linear(16, 20))
    return nn.Sequential(nn.Conv2d(6, 8, 3))


def example(kind: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (64, 16) if kind == "linear" else (4, 6, 7, 6)
    return torch.randn(shape, generator=generator) @ torch.diag(torch.logspace(0, -1, shape[-1]))


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize(("name", "family"), MEMBERS, ids=[name for name, _ in MEMBERS])
def test_every_family_meets_a_budget_in_the_metric_of_its_inputs(name, family, kind) -> None:
    reason = family.refuses(
        Signature((8,), (6, 3, 3)) if kind == "conv" else Signature((20,), (16,))
    )
    if reason:
        pytest.skip(reason)
    rule = {"match": "*", "op": kind, "structure": print_option(families, family)}
    passes = ({"kind": "factorize", "refit": 0.0},)
    wanted = spec(
        rule, budget={"params": 0.6}, metric="inputs", allocate="surrogate", passes=passes
    )
    given = {"example": (example(kind),), "calibration": (example(kind, 1),)}
    made = tnc.compile(model(kind), wanted, **given)
    dense = sum(p.numel() for p in model(kind).parameters())
    assert sum(p.numel() for p in made.model.parameters()) <= 0.6 * dense
    assert all(0 <= entry.error < 1.5 for entry in made.plan.entries if entry.structure)
