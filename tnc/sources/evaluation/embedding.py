"""Sentence embeddings: mean over tokens, unit length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tnc.sources.outputs import mask_of, tensor_of
from tnc.sources.source import Batch, Evaluation, evaluations

if TYPE_CHECKING:
    from torch import Tensor


@evaluations.register("embedding")
@dataclass(frozen=True)
class Embedding(Evaluation):
    """Mean of 1 - cos between the sentence embeddings of both models.

    An embedding is the mean of `last_hidden_state` (samples, tokens, d) over the tokens that the
    attention mask keeps, scaled to length 1.
    """

    figure = "cosine distance"
    curvature = 0.5

    def features(self, output: Any, batch: Batch) -> Tensor:
        from torch.nn.functional import normalize

        hidden, mask = tensor_of(output, "last_hidden_state"), mask_of(batch)
        if hidden.ndim == 3 and mask is not None:
            kept = mask.to(hidden.dtype).unsqueeze(-1)
            hidden = (hidden * kept).sum(1) / kept.sum(1).clamp_min(1)
        elif hidden.ndim == 3:
            hidden = hidden.mean(1)
        return normalize(hidden.flatten(1), dim=-1)

    def distance(self, features: Tensor, reference: Tensor) -> Tensor:
        return 0.5 * (features - reference).square().sum(-1)

    def summary(self, features: Tensor, reference: Tensor) -> dict[str, float]:
        far = self.distance(features.double(), reference.double())
        cosine = 1 - far
        return {
            self.figure: float(far.mean()),
            "cosine similarity": float(cosine.mean()),
            "cosine similarity, 5th percentile": float(cosine.quantile(0.05)),
        }
