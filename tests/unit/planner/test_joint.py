"""Layers of one kind fitted as one tensor: what is shared, what is saved, what comes back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tnc
from tests.compiled import spec
from tnc.errors import PlanError

SHARED = {"kind": "free-form", "equation": "B[l o r] A[r i] : i -> l o"}


BASIS = {"kind": "stacked", "of": "low-rank", "shared": ["A"]}


def stack(layers: int = 4, width: int = 16) -> nn.Sequential:
    """Layers whose weights share a row space of 6 dimensions."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers))
    )
    basis = torch.randn(6, width)
    for layer in model:
        layer[0].weight.data = torch.randn(width, 6) @ basis / 10
    return model.eval()


def compiled(model: nn.Module, *rules: dict, **more):
    return tnc.compile(model, spec(*rules, **more), example=torch.ones(2, 16))


def test_joined_layers_share_cores_and_stay_exact() -> None:
    model, x = stack(), torch.randn(5, 16)
    rule = {"match": "*", "structure": SHARED, "ranks": {"r": 6}, "joint": "all"}
    made = compiled(model, rule)
    assert torch.allclose(made.model(x), model(x), atol=1e-5)
    layers = [m for m in made.model.modules() if isinstance(m, tnc.StructuredLayer)]
    assert len(layers) == 4 and len({id(layer.cores["A"]) for layer in layers}) == 1
    assert len({id(layer.cores["B"]) for layer in layers}) == 4
    (entry,) = [e for e in made.plan.entries if e.structure]
    assert entry.params == 4 * 16 * 6 + 6 * 16 and "one tensor" in entry.reason
    assert (
        sum(p.numel() for n, p in made.model.named_parameters() if "bias" not in n) == entry.params
    )


@pytest.mark.parametrize("shared", [["A"], ["B"], []])
def test_groups_of_two_and_a_layer_without_partner(shared: list[str]) -> None:
    model = stack(5)
    family = {"kind": "stacked", "of": "low-rank", "shared": shared}
    made = compiled(model, {"match": "*", "structure": family, "keep": 0.9, "joint": 2})
    assert [len(e.members) for e in made.plan.entries] == [2, 2]
    assert ["4.0" in s.site and "no layer of its kind" in s.reason for s in made.plan.skips] == [
        True
    ]
    x = torch.randn(3, 16)
    assert made.model(x).shape == (3, 16) and torch.isfinite(made.model(x)).all()


def test_kernels_are_joined_too_and_artifacts_keep_what_is_shared(tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))).eval()
    rule = {
        "match": "*",
        "structure": {"kind": "free-form", "equation": "P[l a] G[a o r h w] V[r i] : i h w -> l o"},
        "ranks": {"a": 3, "r": 6},
        "joint": "all",
    }
    x = torch.randn(2, 6, 8, 8)
    made = tnc.compile(model, spec(rule), example=x)
    assert torch.allclose(made.model(x), model(x), atol=1e-4)
    tnc.save(made, tmp_path / "out")
    again = tnc.load(tmp_path / "out", model=model)
    assert torch.equal(again(x), made.model(x))
    layers = [m for m in again.modules() if isinstance(m, tnc.StructuredLayer)]
    assert len({id(layer.cores["G"]) for layer in layers}) == 1


def test_with_data_the_inputs_of_all_layers_count() -> None:
    model = stack(4)
    for layer in model:
        layer[0].weight.data = torch.randn(16, 16) / 4
    batches = [torch.randn(32, 16) @ torch.diag(torch.linspace(0.1, 2, 16)) for _ in range(4)]
    rule = {"match": "*", "structure": BASIS, "keep": 0.6, "joint": "all"}
    errors = []
    for metric in ("none", "inputs"):
        made = tnc.compile(model, spec(rule, metric=metric), calibration=batches)
        errors.append(
            sum(float((made.model(x) - model(x)).detach().square().sum()) for x in batches)
        )
    assert errors[1] < errors[0]


def test_what_cannot_be_shared_is_said() -> None:
    with pytest.raises(PlanError, match="one weight, no stack"):
        compiled(stack(), {"match": "*", "structure": BASIS, "keep": 0.5})
