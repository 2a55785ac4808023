"""Sparse cores while they are fitted: dense tensors with zeros where nothing is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.fit.metric import Metric


def strongest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` largest scores; among equals, the first."""
    order = torch.sort(scores.flatten(), descending=True, stable=True).indices
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


def kept(core: Tensor, count: int) -> Tensor:
    """Return a core with its `count` largest entries, zeros elsewhere."""
    return torch.where(strongest(core.abs(), count), core, torch.zeros_like(core))


def weighed(matrix: Tensor, metric: Metric) -> Tensor:
    """Return `G E C` of a matrix over flattened outputs and inputs."""
    outputs, inputs = metric.moment("outputs"), metric.moment("inputs")
    if inputs is not None:
        matrix = matrix @ inputs.ridged if inputs.given.ndim == 2 else matrix * inputs.ridged
    if outputs is not None:
        ridged = outputs.ridged
        matrix = ridged @ matrix if ridged.ndim == 2 else ridged[:, None] * matrix
    return matrix
