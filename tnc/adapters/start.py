"""The first values of one delta: what they are computed from, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import torch
from torch import Generator, Tensor

from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure

NEEDS = {
    "gradient": "give calibration batches that reach it, and a loss",
    "moment": "give calibration batches that reach it; inputs of convolutions in groups, and of"
    " compressed weights that code reads itself, are not seen: leave those out",
    "original": "give original=, the model that was compressed, with a weight of that name",
}
"""What a start may be computed from beside the weight, and what to do where it is missing."""


@dataclass(frozen=True, eq=False)
class Start:
    """What the first values of one delta are computed from; tensors are float32 or wider.

    `read` returns the weight as a map `(outputs.., inputs..)`. `gradient` is the mean of dL/dW over
    calibration batches in that shape, `moment` is E[x x^T] of the inputs (i, i) or its diagonal (of
    an embedding the share of every row, (o,)), `original` the weight that was compressed,
    `shared` what the method drew for all weights of the adapter. Of a method that is `sequential`
    the inputs are those that the deltas of earlier layers leave, and the original is the map that
    makes best of them what the original's layer made of its own: see `tnc.adapters.sequential`.
    """

    site: Site
    structure: Structure
    generator: Generator
    read: Callable[[], Tensor]
    gradient: Tensor | None = None
    moment: Tensor | None = None
    original: Tensor | None = None
    shared: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def weight(self) -> Tensor:
        """The weight as a map, at least float32. Raises PlanError where it is not finite."""
        found = wide(self.read())
        if not bool(found.isfinite().all()):
            raise PlanError(
                f"{self.site.name} has entries that are not finite",
                where=self.site.name,
                hint="look for NaN or infinite values in the model's weights",
            )
        return found

    @property
    def matrix(self) -> Tensor:
        """The weight as a matrix, all outputs by all inputs."""
        return self.flat(self.weight)

    def flat(self, tensor: Tensor) -> Tensor:
        """Read a tensor of the map's shape as a matrix, all outputs by all inputs."""
        return tensor.reshape(prod(self.site.signature.outputs), -1)

    def matrices(self, tensor: Tensor) -> Tensor:
        """Read a tensor of the map's shape as a matrix `(o, i)`, of experts as a stack `(e, o, i)`.

        The inputs of a convolution are its channels and the axes of its kernel.
        """
        outputs = self.site.signature.outputs
        return tensor.reshape(*outputs, -1)

    def shaped(self, **cores: Tensor) -> dict[str, Tensor]:
        """Give factors of such matrices the shapes of the cores of these names."""
        shapes = self.structure.shapes
        return {name: value.reshape(shapes[name]) for name, value in cores.items()}

    def given(self, what: str) -> Tensor:
        """Return the gradient, moment or original.

        Raises PlanError where it was not measured, is not finite, or is a gradient of zeros.
        """
        found: Tensor | None = getattr(self, what)
        if found is None:
            raise PlanError(
                f"the start needs the {what} of {self.site.name}",
                where=self.site.name,
                hint=NEEDS[what],
            )
        if not bool(found.isfinite().all()):
            raise PlanError(
                f"the {what} of {self.site.name} is not finite",
                where=self.site.name,
                hint="look for NaN or infinite values in the calibration data, then in the weights",
            )
        if what == "gradient" and not bool(found.any()):
            raise PlanError(
                f"the gradient of {self.site.name} is zero on all calibration batches",
                where=self.site.name,
                hint="give batches whose loss depends on it, or leave it out; what a reentrant"
                " torch.utils.checkpoint hides needs use_reentrant=False",
            )
        return wide(found)

    def uniform(self, core: str, bound: float) -> Tensor:
        """Draw a core uniformly within plus and minus `bound`."""
        drawn = torch.rand(self.structure.shapes[core], generator=self.generator)
        return (2 * drawn - 1) * bound

    def normal(self, core: str, std: float = 1.0) -> Tensor:
        """Draw a core from a normal distribution."""
        return torch.randn(self.structure.shapes[core], generator=self.generator) * std

    def zeros(self, core: str) -> Tensor:
        """Return a core of zeros."""
        return torch.zeros(self.structure.shapes[core])

    def kaiming(self, core: str) -> Tensor:
        """Draw a core as `nn.Linear` draws its weight: uniform, bound 1 / sqrt(fan in).

        The fan in is the size of all axes but the first; a stack of experts has one axis more.
        """
        stacked = len(self.site.signature.outputs) > 1
        fan = prod(self.structure.shapes[core][1 + stacked :])
        return self.uniform(core, max(1, fan) ** -0.5)


@dataclass(frozen=True)
class Parts:
    """The first values of one delta: of every core, and of what the method has beside them.

    Cores named in `shared` are parts of what `Method.shared` returned and keep its memory.
    `extras` are trained, `constants` are not; both are saved. A sparse core is given whole, or as
    its stored values with their flat `positions`, ascending. `structure` is the delta's where it
    depends on the weight's values, such as how many entries a sparse core has.
    """

    cores: Mapping[str, Tensor]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    positions: Mapping[str, Tensor] = field(default_factory=dict)
    structure: Structure | None = None
    shared: tuple[str, ...] = ()


def wide(tensor: Tensor) -> Tensor:
    """Return a detached tensor of at least float32."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
