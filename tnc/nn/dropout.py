"""Tensor dropout: bond indices of a structured weight are dropped while training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tnc.errors import KernelError
from tnc.net import Network
from tnc.nn.layer import StructuredLayer


class TensorDropout(nn.Module):
    """A structured layer whose bonds are thinned while it trains (Kolbeinsson et al., 2021).

    For every bond of size above one a mask keeps each of its indices with probability `1 - p`; one
    core of the bond is multiplied by `mask / (1 - p)`. Masks of different bonds are independent, so
    the expectation of the weight is the weight, whatever the structure. Bonds of size one are left
    alone and not scaled. In eval mode it is the layer itself.

    >>> import torch
    >>> from tnc.net import Structure, parse_network
    >>> from tnc.nn import LinearView
    >>> s = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=8 o=4 r=4"))
    >>> layer = StructuredLayer.initialised(s, LinearView(), 0.1)
    >>> TensorDropout(layer, 0.5)(torch.ones(3, 8)).shape
    torch.Size([3, 4])
    """

    def __init__(self, layer: StructuredLayer, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise KernelError(f"the probability of dropping is {p}", hint="give 0 <= p < 1")
        self.layer, self.p = layer, p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return self.layer(x)  # type: ignore[no-any-return]
        return self.layer.run(self.thinned(), x)

    def thinned(self) -> Mapping[str, Tensor]:
        """Return the cores with fresh masks on them."""
        cores = dict(self.layer.tensors().items())  # dict(ParameterDict) cannot be traced
        for term in self.layer.structure.terms:
            for bond in dropped_bonds(term):
                core = next(c for c in term.equation.cores if bond in c.indices)
                like = cores[core.name]
                mask = torch.empty(term.size[bond], dtype=like.dtype, device=like.device)
                mask = mask.bernoulli_(1 - self.p) / (1 - self.p)
                shape = [-1 if name == bond else 1 for name in core.indices]
                cores[core.name] = like * mask.reshape(shape)
        return cores

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropped_bonds(term: Network) -> tuple[str, ...]:
    """Return the bonds that dropout thins: those of more than one index."""
    return tuple(name for name in term.equation.bonds if term.size[name] > 1)
