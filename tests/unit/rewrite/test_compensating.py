"""Low-rank branches beside weights that another tool changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import tnc
from tnc.errors import PlanError
from tnc.fit import Metric, Moment, fit_structure
from tnc.net import Structure, parse_network
from tnc.rewrite.compensating import residual_branch


def rounded(model: nn.Module, step: float = 0.1) -> nn.Module:
    lossy = copy.deepcopy(model)
    for parameter in lossy.parameters():
        if parameter.dim() == 2:
            parameter.data = (parameter.data / step).round() * step
    return lossy


def model_and_data() -> tuple[nn.Sequential, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 12)).eval()
    spread = torch.diag(torch.logspace(0, -2, 24))
    return model, [torch.randn(64, 24) @ spread for _ in range(4)]


def error(a: nn.Module, b: nn.Module, batches: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return sum(float((a(x) - b(x)).square().sum()) for x in batches)


def test_branches_recover_what_rounding_lost(tmp_path) -> None:
    model, batches = model_and_data()
    lossy = rounded(model)
    made = tnc.compensate(lossy, model, batches, rank=4)
    assert error(made.model, model, batches) < 0.2 * error(lossy, model, batches)
    layer = made.model[0]
    assert not layer.cores["W"].requires_grad and layer.cores["B"].requires_grad
    assert all(entry.relative < 1 and "was off by" in entry.reason for entry in made.plan.entries)
    assert made.plan.total.params == sum(p.numel() for p in made.model.parameters())
    tnc.save(made, tmp_path / "out")
    x = batches[0]
    assert torch.equal(tnc.load(tmp_path / "out", model=lossy)(x), made.model(x))


def test_full_rank_gives_the_original_back() -> None:
    model, batches = model_and_data()
    made = tnc.compensate(rounded(model), model, batches, rank=99)
    assert error(made.model, model, batches) < 1e-8


def test_the_branch_is_that_of_eora_and_survives_dead_inputs() -> None:
    torch.manual_seed(0)
    residual, rank = torch.randn(10, 14, dtype=torch.float64), 3
    x = torch.randn(50, 14, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(x.T @ x / 50)
    scaled = vectors * values.sqrt()
    u, s, v = torch.linalg.svd(residual @ scaled)
    eora = u[:, :rank] * s[:rank] @ v[:rank] @ torch.linalg.inv(scaled)
    left, right = residual_branch(residual, Moment(x.T @ x / 50), rank)
    assert torch.allclose(left @ right, eora, atol=1e-6)
    x[:, 5:] = 0
    left, right = residual_branch(residual, Moment(x.T @ x / 50), 5)
    assert torch.isfinite(left).all() and torch.isfinite(right).all()
    assert float(((residual - left @ right) @ x.T).norm()) < 1e-6 * float((residual @ x.T).norm())


def test_features_mimicked_are_the_truncated_fit_in_the_metric_of_inputs() -> None:
    """Atomic feature mimicking keeps eigenvectors of the outputs' covariance: the same optimum."""
    torch.manual_seed(0)
    weight = torch.randn(9, 13, dtype=torch.float64)
    x = torch.randn(80, 13, dtype=torch.float64) @ torch.randn(13, 13, dtype=torch.float64)
    centred = x - x.mean(0)
    moment = centred.T @ centred / len(x)
    _, vectors = torch.linalg.eigh(weight @ moment @ weight.T)
    top = vectors[:, -4:]
    mimicked = top @ top.T @ weight
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=13 o=9 r=4"))
    fitted = fit_structure(weight, structure, metric=Metric(Moment(moment)))
    assert torch.allclose(fitted.cores["B"] @ fitted.cores["A"], mimicked, atol=1e-8)


def test_what_cannot_be_compensated_is_said() -> None:
    model, batches = model_and_data()
    with pytest.raises(PlanError, match="as in the original"):
        tnc.compensate(model, model, batches)
    with pytest.raises(PlanError, match="the original has no weight"):
        tnc.compensate(rounded(model), nn.Sequential(nn.Identity(), nn.Linear(24, 32)), batches)
    with pytest.raises(PlanError, match="rank is 0"):
        tnc.compensate(rounded(model), model, batches, rank=0)
    made = tnc.compensate(rounded(model), model, batches, rank=2, match=["2"])
    assert [skip.reason for skip in made.plan.skips] == ["no pattern matches it"]
