"""Finding the tensor in what a model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tnc.errors import SourceError
from tnc.sources.source import Batch

if TYPE_CHECKING:
    from torch import Tensor


def tensor_of(output: Any, *names: str) -> Tensor:
    """Return the output's tensor called by one of `names`, else its first tensor.

    Raises SourceError when there is none.
    """
    import torch

    if isinstance(output, torch.Tensor):
        return output
    for name in names:
        held = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(held, torch.Tensor):
            return held
    if isinstance(output, Mapping):
        output = tuple(output.values())
    for item in output if isinstance(output, tuple | list) else ():
        if isinstance(item, torch.Tensor | tuple | list | Mapping):
            return tensor_of(item, *names)
    raise SourceError(f"the model returned {type(output).__name__}, which holds no tensor")


def labels_of(batch: Batch) -> Tensor | None:
    """Return the true labels that come with a batch: under `labels`, or beside its arguments."""
    found = batch.get("labels") if isinstance(batch, Mapping) else getattr(batch, "labels", None)
    return found


def mask_of(batch: Batch) -> Tensor | None:
    """Return the attention mask of a batch, (samples, tokens), where it has one."""
    return batch.get("attention_mask") if isinstance(batch, Mapping) else None
