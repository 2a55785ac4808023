"""What a model source, a data source and an evaluation are, and their registries."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tnc.errors import SourceError
from tnc.registry import Registry
from tnc.sources.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

Batch = Mapping[str, Any] | tuple[Any, ...]
"""Keyword arguments or positional arguments of one forward pass."""


class Labelled(tuple[Any, ...]):
    """Positional arguments with the true labels beside them, which the model does not see."""

    labels: Any

    def __new__(cls, arguments: Iterable[Any], labels: Any) -> Labelled:
        """Put labels beside arguments."""
        made = super().__new__(cls, arguments)
        made.labels = labels
        return made


Split = Literal["calibration", "held-out", "training"]
"""Training is everything but what is held out, where a source has more than it calibrates on."""
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Loaded:
    """A model with what came along: a tokenizer, and files that its artifacts carry."""

    model: nn.Module
    inputs: Batch | None = None
    tokenizer: Any = None
    files: tuple[Path, ...] = ()

    def example(self) -> Call | None:
        """Return an example input as (args, kwargs); None where the source knows none."""
        return None if self.inputs is None else as_call(self.inputs)


@dataclass(frozen=True)
class Streamed(Loaded):
    """A model whose parameters have no memory (device meta), and the checkpoint that holds them.

    `checkpoint` has a tensor for each entry of the state dict, under one of its names; buffers are
    in the model already. `notes` say what in the files is not used.
    """

    checkpoint: Checkpoint = field(kw_only=True)
    notes: tuple[str, ...] = ()


def as_call(batch: Batch) -> Call:
    """Return a batch as (args, kwargs).

    >>> as_call({"x": 1}), as_call((1, 2))
    (((), {'x': 1}), ((1, 2), {}))
    """
    return ((), dict(batch)) if isinstance(batch, Mapping) else (tuple(batch), {})


def count(batch: Batch) -> int:
    """Count the samples of a batch: the first dimension of its first tensor."""
    args, kwargs = as_call(batch)
    first = (*args, *kwargs.values())[0]
    return int(first.shape[0])


class ModelSource(ABC):
    """Where a model comes from; concrete sources are frozen dataclasses."""

    @abstractmethod
    def load(self) -> Loaded:
        """Return the model with its weights, in evaluation mode. Raises SourceError."""

    def stream(self) -> Streamed:
        """Return the model without its weights, which stay in their files. Raises SourceError."""
        raise SourceError(
            f"a model from {type(self).__name__} cannot be streamed: it makes its own weights",
            where="model",
            hint="stream models of kind 'hf' or 'safetensors'",
        )

    def stored_bytes(self) -> int:
        """Return how many bytes of weights lie in files that `stream` can read; 0 for none."""
        return 0

    @abstractmethod
    def skeleton(self, folder: Path | None = None) -> nn.Module:
        """Build the model without its weights; `folder` is an artifact with the source's files.

        Parameters may lie on the meta device.
        """


class DataSource(ABC):
    """Where inputs come from; concrete sources are frozen dataclasses. Deterministic."""

    @abstractmethod
    def batches(self, loaded: Loaded, split: Split = "calibration") -> list[Batch]:
        """Return the batches of a split. Held-out shares no sample with the others.

        Raises SourceError.
        """

    trains: ClassVar[Split] = "calibration"
    """The split that `stream` takes: 'training' in sources that know it."""

    def stream(self, loaded: Loaded, seed: int = 0) -> Callable[[int], Iterable[Batch]]:
        """Return a function that gives the training batches of an epoch, by its number.

        The same number gives the same batches. Sources that augment their samples override it.
        """
        held = self.batches(loaded, self.trains)

        def epoch(number: int) -> Iterable[Batch]:
            order = list(range(len(held)))
            random.Random(f"{seed}/{number}").shuffle(order)
            return (held[place] for place in order)

        return epoch


class Evaluation(ABC):
    """How far a model's output is from the original's; concrete ones are frozen dataclasses.

    `figure` names the mean of `distance`. For a small change of the weights,
    `distance ~ curvature * E[(change of probe)^2]`, so gradients of `probe` sample the curvature of
    the figure without any labels.
    """

    figure: ClassVar[str]
    curvature: ClassVar[float]

    @abstractmethod
    def features(self, output: Any, batch: Batch) -> Tensor:
        """Return what is compared, (samples, d)."""

    @abstractmethod
    def distance(self, features: Tensor, reference: Tensor) -> Tensor:
        """Return how far features are from the reference's, (samples,)."""

    def probe(self, output: Any, batch: Batch, generator: Generator) -> Tensor:
        """Return sum_b u_b . features_b for Gaussian u, a scalar to differentiate."""
        features = self.features(output, batch)
        return (gaussian(features, generator) * features).sum()

    def loss(self, features: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """Return what distillation minimises, a scalar: the mean distance."""
        return self.distance(features, reference).mean()

    def summary(self, features: Tensor, reference: Tensor) -> dict[str, float]:
        """Return figures for people, by name; the mean distance under `figure` is one of them."""
        return {self.figure: float(self.distance(features, reference).mean())}


def gaussian(like: Tensor, generator: Generator) -> Tensor:
    """Draw standard normal numbers on the CPU, so that devices agree, shaped as `like`."""
    import torch

    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float32)
    return drawn.to(device=like.device, dtype=like.dtype)


models: Registry[type[ModelSource]] = Registry("model source", "tnc.sources.model")
datas: Registry[type[DataSource]] = Registry("data source", "tnc.sources.data")
evaluations: Registry[type[Evaluation]] = Registry("evaluation", "tnc.sources.evaluation")
