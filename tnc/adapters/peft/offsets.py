"""Checkpoints whose training changed the base: what was taken from it, as frozen factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tnc.adapters.low_rank import LowRank
from tnc.errors import ArtifactError

UNCHANGED = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
"""Starts that leave the base weights as they are."""

NAMED_START = ("pissa_niter", "corda", "lora_ga")
"""Starts that took something from the base which cannot be computed from it again."""


def pissa(weight: Tensor, rank: int, scale: float) -> LowRank:
    """Return the leading part of a weight (o, i), divided by the scale."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return LowRank(left[:, :rank] * root, root.unsqueeze(1) * right[:rank])


def olora(weight: Tensor, rank: int, scale: float) -> LowRank:
    """Return the first columns of Q and rows of R; the scale multiplies what was taken."""
    q, r = torch.linalg.qr(weight)
    return LowRank(q[:, :rank], r[:rank])


COMPUTED: Mapping[str, Callable[[Tensor, int, float], LowRank]] = {"pissa": pissa, "olora": olora}
"""What was taken from the base, by the start's name, where it follows from the base."""


def start_of(config: Mapping[str, Any]) -> str:
    """Return the name of the start where it changed the base, '' where it did not.

    Raises ArtifactError for an unknown one.
    """
    name = str(config.get("init_lora_weights", True)).lower()
    if name in UNCHANGED:
        return ""
    if name in COMPUTED or name.startswith(NAMED_START):
        return name
    hint = (
        "merge the adapter in PEFT"
        if name != "loftq"
        else ("its base is a quantised one: load that model and set init_lora_weights to true")
    )
    raise ArtifactError(f"init_lora_weights is {name!r}, which this cannot read", hint=hint)
