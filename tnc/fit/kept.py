"""Sparse cores while they are fitted: dense tensors with zeros where nothing is stored."""

from __future__ import annotations

import torch
from torch import Tensor


def strongest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` largest scores; among equals, the first."""
    order = torch.sort(scores.flatten(), descending=True, stable=True).indices
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


def kept(core: Tensor, count: int) -> Tensor:
    """Return a core with its `count` largest entries, zeros elsewhere."""
    return torch.where(strongest(core.abs(), count), core, torch.zeros_like(core))
