"""A model's fingerprint: what a plan must match to be replayed on a checkpoint."""

from __future__ import annotations

from torch import nn

from tnc.capture.weights import Weights
from tnc.net import digest


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of names, shapes, dtypes, ties and class names, in hex.

    Values, device, training mode and hash seed do not enter: two checkpoints of one architecture
    have one fingerprint.
    """
    weights = Weights(model)
    parameters = [
        [name, list(p.shape), _dtype(p), sorted(weights.aliases[name])]
        for name, p in weights.parameters.items()
    ]
    buffers = [[name, list(b.shape), _dtype(b)] for name, b in model.named_buffers()]
    classes = [[path, type(module).__qualname__] for path, module in model.named_modules()]
    return digest(
        {
            "parameters": sorted(parameters),
            "buffers": sorted(buffers),
            "classes": sorted(classes),
        }
    )


def _dtype(tensor: object) -> str:
    return str(getattr(tensor, "dtype", "")).removeprefix("torch.")
