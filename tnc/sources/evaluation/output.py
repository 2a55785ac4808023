"""The output itself, whatever it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tnc.sources.outputs import mask_of, tensor_of
from tnc.sources.source import Batch, Evaluation, evaluations, gaussian

if TYPE_CHECKING:
    from torch import Generator, Tensor

_TINY = 1e-30


@evaluations.register("output")
@dataclass(frozen=True)
class Output(Evaluation):
    """Mean over samples of ||y' - y||^2 / ||y||^2, for the first tensor of the output.

    What is used where a spec names no evaluation. Tokens that an attention mask hides count as 0.
    """

    figure = "relative squared error"
    curvature = 1.0

    def features(self, output: Any, batch: Batch) -> Tensor:
        found, mask = tensor_of(output), mask_of(batch)
        if mask is not None and found.shape[:2] == mask.shape and found.ndim > 2:
            found = found * mask.to(found.dtype).reshape(*mask.shape, *[1] * (found.ndim - 2))
        return found.flatten(1) if found.ndim > 1 else found.unsqueeze(-1)

    def distance(self, features: Tensor, reference: Tensor) -> Tensor:
        size = reference.square().sum(-1).clamp_min(_TINY)
        return (features - reference).square().sum(-1) / size

    def probe(self, output: Any, batch: Batch, generator: Generator) -> Tensor:
        """Return sum_b u_b . y_b / ||y_b||: the figure is relative."""
        features = self.features(output, batch)
        size = features.detach().norm(dim=-1, keepdim=True).clamp_min(_TINY)
        scaled: Tensor = gaussian(features, generator) * features / size
        return scaled.sum()
