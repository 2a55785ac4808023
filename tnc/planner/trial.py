"""Trials: put candidate weights into a copy of the model and measure what comes out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from tnc.capture.batches import call
from tnc.decide.target import Target
from tnc.planner.options import Option, metric_kind
from tnc.rewrite.edit import bias_of, owner_of
from tnc.rewrite.fitting import Fitting, fit_sites, metric_of, parts_of
from tnc.rewrite.subject import Subject


class Evaluator(Protocol):
    """What tells how far a model is from the original: see `tnc.sources`."""

    @property
    def curvature(self) -> float:
        """Return c in `distance ~ c E[(change of probe)^2]`."""
        ...

    def features(self, output: Any, batch: Any) -> Tensor:
        """Return one vector a sample, `[samples, d]`."""
        ...

    def distance(self, features: Tensor, reference: Tensor) -> Tensor:
        """Return the distance of every sample from the original, `[samples]`."""
        ...

    def probe(self, output: Any, batch: Any, generator: Generator) -> Tensor:
        """Return a scalar whose gradient samples the Jacobian of the features."""
        ...


class Trial:
    """A copy of the model in which weights are exchanged; fits are made once and kept."""

    def __init__(
        self,
        subject: Subject,
        batches: Sequence[Any],
        evaluation: Evaluator,
        spec: Any,
    ) -> None:
        self._subject, self._spec, self._evaluation = subject, spec, evaluation
        self._batches = tuple(batches)
        self._model = copy.deepcopy(subject.model).eval()
        self._fits: dict[tuple[str, str], Fitting] = {}
        self._reference = self._features()

    def figure(self, chosen: Sequence[tuple[Target, Option]]) -> float:
        """Return the mean distance of the model's features with the chosen options in place."""
        saved: list[tuple[Tensor, Tensor]] = []
        try:
            for target, option in chosen:
                if option.candidate is not None:
                    self._put(target, self._fit(target, option), saved)
            found = self._features()
        finally:
            for parameter, old in reversed(saved):
                parameter.data = old
        distances = [
            self._evaluation.distance(new, old) for new, old in zip(found, self._reference)
        ]
        return float(torch.cat(distances).double().mean())

    def forget(self) -> None:
        """Drop the fits that are kept."""
        self._fits.clear()

    def _features(self) -> list[Tensor]:
        with torch.no_grad():
            return [
                self._evaluation.features(call(self._model, batch), batch).float()
                for batch in self._batches
            ]

    def _fit(self, target: Target, option: Option) -> Fitting:
        assert option.candidate is not None
        key = (target.name, str(option.candidate.structure))
        if key not in self._fits:
            kind = metric_kind(self._subject, target, self._spec)
            subject = self._subject
            metric = metric_of(subject.model, target.group, subject.measurements, kind)
            self._fits[key] = fit_sites(
                subject.model,
                target.group,
                option.candidate.structure,
                option.candidate.fit,
                metric,
                subject.measurements,
                self._spec.seed,
            )
        return self._fits[key]

    def _put(self, target: Target, fit: Fitting, saved: list[tuple[Tensor, Tensor]]) -> None:
        parts = parts_of(fit.dense, target.group)
        for site, part, shift in zip(target.sites, parts, fit.shifts):
            module, attribute = owner_of(self._model, site.name)
            weight = module._parameters[attribute]
            assert weight is not None
            saved.append((weight, weight.data))
            stored = part.permute(site.unordered)
            weight.data = stored.to(weight.dtype).contiguous()
            bias = bias_of(self._model, site)
            if bias is not None and shift is not None:
                saved.append((bias, bias.data))
                bias.data = bias.data + shift.to(bias.dtype)
