"""Balls that a perturbation of parameters is held to, and the steepest way to their surface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

Changes = Mapping[Tensor, Tensor]
"""A tensor of the parameter's shape for every parameter, by the parameter."""


class Ball(Protocol):
    """A unit ball of changes of the parameters."""

    def ascent(self, gradients: Changes) -> dict[Tensor, Tensor]:
        """Return the change on the unit sphere along which the loss grows fastest.

        Zeros where the gradients are zero.
        """


class Euclidean:
    """The ball of all parameters' entries together: `|d| = 1`. Cores count as parameters."""

    def ascent(self, gradients: Changes) -> dict[Tensor, Tensor]:
        """Return `g / |g|`."""
        size = norm(gradients)
        scale = 1.0 / size if size > 0 else 0.0
        return {parameter: found * scale for parameter, found in gradients.items()}


def norm(changes: Changes) -> float:
    """Return the norm of all changes together, added up in float64."""
    return float(sum(float(found.norm().double()) ** 2 for found in changes.values()) ** 0.5)
