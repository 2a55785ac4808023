"""What weighs the errors of layers against each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.compiled import spec
from tnc.capture import measure
from tnc.errors import PlanError, SourceError
from tnc.sources import evaluations
from tnc.sources.source import Labelled

RULE = {"match": "*", "structure": "low-rank", "keep": 0.5}
LOGITS, OUTPUT = evaluations.get("logits")(), evaluations.get("output")()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(),
                         nn.Linear(8, 4))  # fmt: skip


def data(labels: bool = False, batches: int = 3, size: int = 16) -> tuple[tuple[Tensor, ...], ...]:
    draw = torch.Generator().manual_seed(1)
    inputs = [torch.randn(size, 12, generator=draw) for _ in range(batches)]
    if not labels:
        return tuple((x,) for x in inputs)
    return tuple(Labelled((x,), torch.randint(0, 4, (size,), generator=draw)) for x in inputs)


def errors(sensitivity: str, metric: str = "inputs", labels: bool = False) -> dict[str, float]:
    wish = spec(RULE, metric=metric, sensitivity=sensitivity)
    plan = tnc.plan(net(), wish, calibration=data(labels), evaluation=LOGITS)
    return {entry.site: entry.error for entry in plan.entries}


def test_the_empirical_fisher_is_the_mean_square_of_gradients_by_hand() -> None:
    model, batches = net(), data(labels=True)
    found = measure(model, tnc.trace(model, *batches[0]).sites, batches, weigh=LOGITS.likelihood)
    total = 0.0
    for batch in batches:
        hidden = model[2](torch.relu(model[0](batch[0]))).detach().requires_grad_()
        logs = model[4](torch.relu(hidden)).log_softmax(-1)
        (grad,) = torch.autograd.grad(logs[range(16), batch.labels].sum(), hidden)
        total += float(grad.square().sum()) / 8 / 48
    assert found.of("2.weight").weight == pytest.approx(total, rel=1e-5)


def test_labels_drawn_from_the_model_give_the_curvature_of_the_logits() -> None:
    model, batches = net(), data(batches=300)
    sites = tnc.trace(model, *batches[0]).sites
    drawn = measure(model, sites, batches, weigh=LOGITS.likelihood)
    curved = measure(model, sites, batches, gradients=LOGITS.probe)
    for site in sites:
        whole = curved.of(site.name).outputs
        assert drawn.of(site.name).weight == pytest.approx(float(whole.diagonal().mean()), rel=0.1)


@pytest.mark.parametrize("metric", ["none", "inputs", "both"])
@pytest.mark.parametrize("sensitivity", ["outputs", "gradient", "fisher"])
def test_a_sensitivity_changes_what_errors_are_added_up_and_no_fit(
    metric: str, sensitivity: str
) -> None:
    wishes = [spec(RULE, metric=metric, sensitivity=s) for s in ("auto", sensitivity)]
    plain, weighed = (tnc.compile(net(), w, calibration=data(), evaluation=LOGITS) for w in wishes)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, weighed.model.state_dict()[name])
    ratios = [b.error / a.error for a, b in zip(plain.plan.entries, weighed.plan.entries)]
    changed = max(ratios) / min(ratios) > 1.05
    assert changed != (metric == "both" and sensitivity == "outputs")


def test_weighed_errors_foretell_the_distance_within_a_factor() -> None:
    """A scalar a layer, with the metric of inputs: the KL that the model really has, roughly."""
    rule = {**RULE, "match": "2.weight", "keep": 0.8}
    for metric in ("none", "inputs", "both"):
        wish = spec(rule, metric=metric, sensitivity="outputs")
        made = tnc.compile(net(), wish, calibration=data(batches=20), evaluation=LOGITS)
        (entry,) = made.plan.entries
        apart = []
        for batch in data(batches=20):
            with torch.no_grad():
                new, old = (LOGITS.features(m(*batch), batch) for m in (made.model, net()))
            apart.append(LOGITS.distance(new, old))
        assert abs(math.log(entry.error / float(torch.cat(apart).mean()))) < math.log(4)


def test_errors_relative_to_layers_are_asked_for_by_name() -> None:
    wish = spec(RULE, metric="both", sensitivity="none")
    plan = tnc.plan(net(), wish, calibration=data(), evaluation=LOGITS)
    for entry in plan.entries:
        assert entry.error == pytest.approx(entry.relative**2, rel=1e-4)


def test_where_labels_come_from_is_told() -> None:
    wish = spec(RULE, metric="inputs", sensitivity="fisher")
    for labels, told in ((True, "labels of the data"), (False, "drawn from the model")):
        plan = tnc.plan(net(), wish, calibration=data(labels), evaluation=LOGITS)
        assert any(told in note for note in plan.notes)
    assert errors("fisher", labels=True) != errors("fisher")


@dataclass(frozen=True)
class Flat:
    """An evaluation that no weight changes."""

    curvature: float = 1.0

    def features(self, output: Tensor, batch: object) -> Tensor:
        return output * 0

    def distance(self, features: Tensor, reference: Tensor) -> Tensor:
        return (features - reference).square().sum(-1)

    def probe(self, output: Tensor, batch: object, generator: object) -> Tensor:
        return (output * 0).sum()


@pytest.mark.parametrize(
    ("sensitivity", "given", "told"),
    [
        ("fisher", {}, "needs calibration data"),
        ("outputs", {"calibration": data()}, "needs an evaluation"),
        ("fisher", {"calibration": data(), "evaluation": OUTPUT}, "predicts none"),
        ("fisher", {"calibration": data(True)[:1] + data(), "evaluation": LOGITS}, "no labels"),
        ("gradient", {"calibration": data(size=1), "evaluation": LOGITS}, "single one"),
        ("gradient", {"calibration": data(), "evaluation": Flat()}, "no gradient reaches"),
    ],
)
def test_what_is_missing_is_told(sensitivity: str, given: dict[str, object], told: str) -> None:
    wish = spec(RULE, metric="none", sensitivity=sensitivity)
    with pytest.raises(PlanError, match=told) as caught:
        tnc.plan(net(), wish, **{"example": torch.ones(2, 12), **given})
    assert caught.value.where == "sensitivity"


def test_labels_that_do_not_fit_are_told() -> None:
    wrong = tuple(Labelled(b, torch.full((16,), 9)) for b in data())
    wish = spec(RULE, metric="none", sensitivity="fisher")
    with pytest.raises(SourceError, match="do not fit"):
        tnc.plan(net(), wish, calibration=wrong, evaluation=LOGITS)


def test_a_plan_of_several_metrics_replays() -> None:
    rules = [{**RULE, "match": "0.weight", "metric": "none"}, {**RULE, "match": "2.weight"}]
    given = {"calibration": data(), "evaluation": LOGITS}
    made = tnc.compile(net(), spec(*rules, metric="both"), **given)
    again = tnc.compile(net(), spec(*rules, metric="both"), plan=made.plan, **given)
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
