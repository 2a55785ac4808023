"""The library's layers that one of ours can stand in for."""

from __future__ import annotations

from torch import nn

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.modules.linear.NonDynamicallyQuantizableLinear: "linear",
    nn.Embedding: "embedding",
    **dict.fromkeys(CONVOLUTIONS, "conv"),
}


def layer_kind(module: nn.Module) -> str:
    """Return 'linear', 'conv' or 'embedding', or '' where only the module itself will do.

    Subclasses, and modules whose `forward` was replaced, may do something else with their weight.

    >>> layer_kind(nn.Linear(2, 3)), layer_kind(nn.ReLU())
    ('linear', '')
    """
    if "forward" in vars(module):
        return ""
    if (type(module).__module__, type(module).__name__) == ("transformers.pytorch_utils", "Conv1D"):
        return "linear"
    return _KINDS.get(type(module), "")
