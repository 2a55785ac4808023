"""How the errors of different layers are weighed against each other when they are added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Generator, Tensor

from tnc.capture import Measurements
from tnc.decide.spec import Spec
from tnc.decide.target import Target
from tnc.errors import PlanError
from tnc.fit import Metric, Moment
from tnc.sources.outputs import labels_of

if TYPE_CHECKING:
    from tnc.planner.trial import Evaluator

Probe = Callable[[Any, Any, Generator], Tensor]

OWN_UNIT = ("none", "auto")


@dataclass(frozen=True)
class Scale:
    """A scalar whose squared gradients weigh the layers, and what they are multiplied by."""

    probe: Probe
    factor: float
    told: str


@dataclass(frozen=True)
class Weighing:
    """`weights[site]`: the factor times the mean squared gradient of an output, the mean square of
    an input; None stands for a site that no gradient reaches."""

    weights: Mapping[str, tuple[float, float] | None]
    told: str


def scale_of(
    spec: Spec, evaluation: Evaluator | None, batches: Sequence[Any], whole: bool
) -> Scale | None:
    """Return what weighs the layers beside the metric; None where nothing has to be measured.

    `whole` says that the metric of every layer holds the weights of its outputs. Raises PlanError
    where data, an evaluation, labels or a predicted distribution are missing.
    """
    kind = spec.sensitivity
    if kind in OWN_UNIT or (kind == "outputs" and whole and batches and evaluation is not None):
        return None
    missing = "calibration data" if not batches else "an evaluation" if evaluation is None else ""
    if missing or evaluation is None:
        raise _refused(f"sensitivity {kind!r} needs {missing}", f"give {missing}, or `auto`")
    if kind == "outputs":
        return Scale(evaluation.probe, evaluation.curvature, "the curvature of the evaluation")
    if kind == "gradient":
        return Scale(_between(evaluation), 1.0, "gradients of the distance between samples")
    likelihood = getattr(evaluation, "likelihood", None)
    if likelihood is None:
        raise _refused(
            f"sensitivity 'fisher' needs a predicted distribution, {type(evaluation).__name__} "
            "predicts none",
            "use `evaluation: logits`, or `outputs`: the Fisher information under Gaussian noise",
        )
    known = [labels_of(batch) is not None for batch in batches]
    if any(known) and not all(known):
        raise _refused(
            f"{known.count(False)} of {len(known)} calibration batches have no labels",
            "give labels with all of them, or with none",
        )
    source = "labels of the data" if all(known) else "labels drawn from the model: there are none"
    return Scale(likelihood, 0.5, f"Fisher information by {source}")


def weighing_of(scale: Scale, measured: Measurements) -> Weighing:
    """Return the weights of the sites from measured figures."""
    found: dict[str, tuple[float, float] | None] = {}
    for name, site in measured.sites.items():
        reads = site.moment if site.frequencies is None else site.frequencies
        known = site.weight is not None and reads is not None
        found[name] = None
        if known and site.weight:
            found[name] = (scale.factor * site.weight, _mean(reads))
    if not any(found.values()):
        raise _refused(
            f"no gradient reaches any layer: sensitivity by {scale.told} tells nothing",
            "use another sensitivity, or `none`",
        )
    return Weighing(found, scale.told)


def unit_of(
    target: Target,
    metric: Metric,
    energy: float,
    sensitivity: str,
    curvature: float,
    kind: str,
    weighing: Weighing | None,
) -> float:
    """Return the squared error in a layer's metric that counts as one.

    By itself that is its weight's squared norm, or with output weights 1 / curvature. A weighing
    stands in for what the metric leaves out: its scalar for the output weights (divided by the mean
    of those that are in the metric), the mean square of an input for the moment.
    """
    outputs = metric.outputs is not None and kind == "both"
    if sensitivity == "none" or (sensitivity == "auto" and not outputs):
        return energy
    if weighing is None:
        return 1 / curvature if outputs else energy
    known = [pair for s in target.sites if (pair := weighing.weights.get(s.name)) is not None]
    if len(known) < len(target.sites):
        return energy
    weight = sum(pair[0] for pair in known) / len(known)
    looked_up = target.sites[0].op == "embedding"
    gradients, reads = metric.outputs, metric.inputs
    if looked_up:
        gradients, reads = reads, gradients
    if gradients is not None:
        weight /= _mean(gradients)
    if reads is None:
        weight *= sum(pair[1] for pair in known) / len(known)
    return 1 / weight


def notes_of(weighing: Weighing | None) -> list[str]:
    """Say by what the layers are weighed, and which have no weight."""
    if weighing is None:
        return []
    bare = sorted(name for name, pair in weighing.weights.items() if pair is None)
    told = [f"errors of layers are weighed by {weighing.told}"]
    return told + [f"{name}: has no weight, its error is relative to itself" for name in bare]


def _between(evaluation: Evaluator) -> Probe:
    """The distance to itself has no gradient: take that of every sample to the one before it."""

    def probe(output: Any, batch: Any, generator: Generator) -> Tensor:
        features = evaluation.features(output, batch)
        if len(features) < 2:
            raise _refused(
                "sensitivity 'gradient' compares the samples of a batch, and one has a single one",
                "use larger batches, or `outputs`",
            )
        return evaluation.distance(features, features.detach().roll(1, 0)).sum()

    return probe


def _mean(moment: Tensor | Moment | None) -> float:
    assert moment is not None
    given = moment.given if isinstance(moment, Moment) else moment
    return float((given if given.dim() == 1 else given.diagonal()).double().mean())


def _refused(message: str, hint: str) -> PlanError:
    return PlanError(message, where="sensitivity", hint=hint)
