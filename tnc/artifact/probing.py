"""The stored probe: inputs and outputs that a reloaded model must reproduce."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def probe_inputs(data: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Read the inputs back from a probe file's tensors."""
    args = [(int(k[5:]), v) for k, v in data.items() if k.startswith("args.")]
    kwargs = {k[7:]: v for k, v in data.items() if k.startswith("kwargs.")}
    return tuple(v for _, v in sorted(args, key=lambda item: item[0])), kwargs


def same_outputs(found: tuple[Tensor, ...], stored: Mapping[str, Tensor], rtol: float) -> str:
    """Say how outputs differ from those of a probe file; empty when they do not."""
    for number, tensor in enumerate(found):
        want = stored.get(f"outputs.{number}")
        if want is None or want.shape != tensor.shape:
            return f"output {number} changed its shape or is new"
        scale = float(want.double().norm()) or 1.0
        gap = float((tensor.double().cpu() - want.double()).nan_to_num().norm()) / scale
        if not gap <= max(rtol, 8 * torch.finfo(tensor.dtype).eps
                          if tensor.is_floating_point() else 0.0):
            return f"output {number} differs by {gap:.3g} (relative norm)"
    return ""
