"""Planning does not depend on the machine: no kernel that was chosen by its prices runs there."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import tnc
from tests.compiled import spec
from tnc import api
from tnc.decide.spec import Spec
from tnc.kernels.applied import Applied
from tnc.nn import StructuredLayer
from tnc.sources import evaluations
from tnc.stream import running

BATCHES = [torch.randn(24, 24, generator=torch.Generator().manual_seed(k)) for k in range(3)]


class Called(Exception):
    pass


@pytest.fixture(autouse=True)
def _told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise Called

    monkeypatch.setattr(Applied, "__call__", refuse)


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 12)).eval()


def structured() -> nn.Module:
    return tnc.compile(model(), spec(), example=BATCHES[0]).model


def wish(**more: object) -> Spec:
    rule = {"match": "*", "structure": "low-rank"}
    return spec(rule, **{"budget": {"params": 0.6}, "metric": "both", "round_to": 1, **more})


DATA = {"calibration": BATCHES, "evaluation": evaluations.get("output")()}


def test_plans_and_compilations_run_plain() -> None:
    tnc.plan(model(), wish(), **DATA)
    made = tnc.compile(model(), wish(), **DATA)
    assert any(isinstance(module, StructuredLayer) for module in made.model)


def test_structured_models_are_traced_measured_and_mended_plain() -> None:
    layered = structured()
    trace = tnc.trace(layered, BATCHES[0])
    tnc.measure(layered, trace, BATCHES)
    pruned = model()
    pruned[0].weight.data[:, ::2] = 0
    tnc.compensate(pruned, model(), BATCHES, rank=1)


def test_the_oracle_sees_kernels() -> None:
    with pytest.raises(Called):
        structured()(BATCHES[0])


def test_budgets_of_seconds_time_what_will_run() -> None:
    with pytest.raises(Called):
        tnc.plan(model(), wish(budget={"latency": 0.7}, metric="none"), example=BATCHES[0])


@pytest.mark.parametrize("function", [api.trace, api.measure, api.plan, api.compile,
                                      api.compensate, running.plan, running.run])  # fmt: skip
def test_entry_points_keep_their_signatures(function: object) -> None:
    assert "args" not in inspect.signature(function).parameters or function is api.trace
    assert hasattr(function, "__wrapped__"), "it runs outside of plain_kernels()"
