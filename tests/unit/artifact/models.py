"""Functions that make models, for artifacts that say how to build their own."""

from __future__ import annotations

from torch import nn

from tests.zoo import case


def prime() -> nn.Module:
    """The zoo's small MLP with other weights than the one that was compiled."""
    return case("prime").build(seed=5)


def wider() -> nn.Module:
    """The same with another activation: it fits the artifact and computes something else."""
    model = prime()
    model[1] = nn.ReLU()
    return model
