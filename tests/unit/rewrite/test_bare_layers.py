"""A layer that is the whole model, and layers of complex numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tnc.errors import PlanError
from tnc.rewrite.compensating import compensate


def spec(structure: str) -> tnc.Spec:
    return tnc.Spec(version=1, rules=({"match": "*", "structure": structure, "keep": 0.5},))


@pytest.mark.parametrize("refitted", [False, True])
@pytest.mark.parametrize(
    "build, shape",
    [(lambda: nn.Linear(16, 16), (4, 16)), (lambda: nn.Conv2d(8, 8, 3), (2, 8, 6, 6))],
)
def test_a_bare_layer_is_rebuilt_from_cores(build, shape, refitted: bool) -> None:
    torch.manual_seed(0)
    model, x = build(), torch.randn(shape)
    batches = [torch.randn(shape) for _ in range(4)] if refitted else None
    wish = spec("low-rank" if isinstance(model, nn.Linear) else "tucker")
    made = tnc.compile(model, wish, example=x, calibration=batches)
    assert isinstance(made.model, type(model)) and "weight" not in made.model._parameters
    count = sum(p.numel() for p in made.model.parameters())
    assert count < sum(p.numel() for p in model.parameters())
    assert made.model(x).shape == model(x).shape


def test_a_branch_beside_a_complex_weight_is_refused() -> None:
    original = nn.Sequential(nn.Linear(6, 6, bias=False, dtype=torch.complex64))
    other = nn.Sequential(nn.Linear(6, 6, bias=False, dtype=torch.complex64))
    x = torch.randn(4, 6, dtype=torch.complex64)
    with pytest.raises(PlanError, match="complex"):
        compensate(other, original, [x], ((x,), {}))
