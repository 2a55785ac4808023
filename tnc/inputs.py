"""What a spec's sources give: the model, its data, and how its outputs are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tnc.decide.spec import Spec
from tnc.errors import SourceError
from tnc.sources import Batch, DataSource, Evaluation, Loaded, evaluations
from tnc.sources.source import as_call

BATCHES = (1, 32)
"""Batch sizes at which models are timed."""


@dataclass(frozen=True)
class Inputs:
    """What a spec's sources gave: the model, its data, and how its outputs are judged."""

    loaded: Loaded
    spec: Spec
    calibration: tuple[Batch, ...]
    held_out: tuple[Batch, ...]
    evaluation: Evaluation

    @property
    def given(self) -> dict[str, Any]:
        """The keyword arguments of `tnc.api.plan` and `tnc.api.compile`."""
        example = self.loaded.example()
        if example is None and self.calibration:
            example = as_call(self.calibration[0])
        return {
            "example": example,
            "calibration": self.calibration or None,
            "evaluation": self.evaluation,
        }


def load(spec: Spec) -> Inputs:
    """Load what a spec names. Raises SourceError."""
    if spec.model is None:
        raise SourceError(
            "the spec names no model",
            where="model",
            hint="add `model: {kind: hf, path: ...}`, or call tnc.compile(model, spec) in Python",
        )
    loaded = spec.model.load()
    data = spec.calibration
    if data is None and loaded.example() is None:
        raise SourceError(
            "there is no example input to run the model on",
            where="calibration",
            hint="add calibration data; `{kind: random, shapes: [[...]]}` is enough to try",
        )
    return Inputs(
        loaded,
        spec,
        tuple(data.batches(loaded, "calibration")) if data else (),
        tuple(data.batches(loaded, "held-out")) if data else (),
        spec.evaluation or evaluations.get("output")(),
    )


def timing_batches(inputs: Inputs, sizes: Sequence[int] = BATCHES) -> list[Batch]:
    """Return one batch of each size from the held-out data, or what there is of it."""
    source = inputs.spec.calibration
    if source is None:
        return [inputs.loaded.inputs] if inputs.loaded.inputs is not None else []
    return [_sized(source, inputs, size) for size in sizes]


def _sized(source: DataSource, inputs: Inputs, size: int) -> Batch:
    if any(option.name == "batch" for option in fields(source)):  # type: ignore[arg-type]
        source = replace(source, batch=size)  # type: ignore[type-var]
        return source.batches(inputs.loaded, "held-out")[0]
    args, kwargs = as_call(inputs.held_out[0])
    if kwargs:
        return {name: value[:size] for name, value in kwargs.items()}
    return tuple(value[:size] for value in args)
