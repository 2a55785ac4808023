"""Class or token probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tnc.errors import SourceError
from tnc.sources.outputs import labels_of, mask_of, tensor_of
from tnc.sources.source import Batch, Evaluation, evaluations, gaussian

if TYPE_CHECKING:
    from torch import Generator, Tensor


@evaluations.register("logits")
@dataclass(frozen=True)
class Logits(Evaluation):
    """Mean KL(original || compiled) of the predicted distributions, in nats.

    Logits (samples, classes), or (samples, tokens, classes), where every token that the attention
    mask keeps is a sample. The curvature is then the Fisher information of the prediction.
    """

    figure = "KL divergence"
    curvature = 0.5

    def features(self, output: Any, batch: Batch) -> Tensor:
        logits, mask = tensor_of(output, "logits"), mask_of(batch)
        if logits.ndim == 3 and mask is not None:
            logits = logits[mask.bool()]
        return logits.flatten(0, -2).log_softmax(-1)

    def distance(self, features: Tensor, reference: Tensor) -> Tensor:
        return (reference.exp() * (reference - features)).sum(-1)

    def loss(self, features: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
        """Return `T^2` times the mean KL of both distributions softened by T (Hinton et al.)."""
        soft, target = ((f / temperature).log_softmax(-1) for f in (features, reference))
        return temperature**2 * self.distance(soft, target).mean()

    def probe(self, output: Any, batch: Batch, generator: Generator) -> Tensor:
        """Return sum_b (H_b^(1/2) u_b) . z_b with H = diag(p) - p p^T, the Hessian of the KL."""
        logs = self.features(output, batch)
        root = logs.detach().mul(0.5).exp()
        drawn = gaussian(logs, generator)
        across = root * drawn - root.square() * (root * drawn).sum(-1, keepdim=True)
        return (across * logs).sum()

    def likelihood(self, output: Any, batch: Batch, generator: Generator) -> Tensor:
        """Return sum_b log p(y_b), y the labels of the batch, else drawn from the model.

        Labels belong to the logits of the same place; those below 0 do not count.
        """
        logs, labels, mask = self.features(output, batch), labels_of(batch), mask_of(batch)
        if labels is None:
            drawn = logs.detach().double().exp().cpu()
            labels = drawn.multinomial(1, generator=generator).squeeze(1)
        elif labels.ndim == 2 and mask is not None:
            labels = labels[mask.bool()]
        labels = labels.flatten().to(logs.device)
        if len(labels) != len(logs) or labels.is_floating_point() or labels.max() >= logs.shape[1]:
            raise SourceError(
                f"labels {tuple(labels.shape)}, the largest {float(labels.max()):g}, do not fit "
                f"{len(logs)} predictions of {logs.shape[1]} classes",
                where="calibration",
                hint="labels are whole numbers, one a prediction, from 0 to below the classes",
            )
        known = labels >= 0
        found: Tensor = logs[known].gather(1, labels[known].unsqueeze(1)).sum()
        return found

    def summary(self, features: Tensor, reference: Tensor) -> dict[str, float]:
        same = features.argmax(-1) == reference.argmax(-1)
        return {
            self.figure: float(self.distance(features.double(), reference.double()).mean()),
            "agreement": float(same.double().mean()),
        }
