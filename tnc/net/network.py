"""Networks: equations with sizes; structures: sums of networks of one signature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from tnc.errors import EquationError
from tnc.net.equation import Axis, Core, Equation


@dataclass(frozen=True)
class Signature:
    """The model dimensions of a weight: a linear map from `inputs` to `outputs`.

    Linear weights are (o | i), convolutions (o | i h w), embedding tables (vocabulary | dimension):
    an embedding is read by output leg, as the tied head that it may be.

    >>> str(Signature((384,), (1536,)))
    '384 <- 1536'
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]

    def __str__(self) -> str:
        return " x ".join(map(str, self.outputs)) + " <- " + " x ".join(map(str, self.inputs))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense weight: outputs, then inputs."""
        return self.outputs + self.inputs

    @property
    def parameters(self) -> int:
        """The number of entries of the dense weight."""
        return prod(self.shape)


@dataclass(frozen=True)
class Network:
    """An equation with a size for every index. Raises EquationError when they do not fit."""

    equation: Equation
    sizes: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, equation: Equation, sizes: Mapping[str, int]) -> Network:
        """Build from a mapping; sizes are sorted by name."""
        return cls(equation, tuple(sorted(sizes.items())))

    def __post_init__(self) -> None:
        names, given = set(self.equation.names), {name for name, _ in self.sizes}
        if names != given:
            missing, extra = sorted(names - given), sorted(given - names)
            raise EquationError(
                "sizes do not fit the equation: "
                + ", ".join([f"no size for {n}" for n in missing] + [f"{n} unused" for n in extra]),
                where=f"equation {self.equation}",
            )
        for name, size in self.sizes:
            if size < 1:
                raise EquationError(
                    f"index {name} has size {size}", where=f"equation {self.equation}"
                )
        for core in self.equation.cores:
            if core.stored and self.stored(core) > prod(self.shape(core)):
                raise EquationError(
                    f"core {core.name} has {prod(self.shape(core))} entries, "
                    f"{core.stored}={self.stored(core)} are to be stored",
                    where=f"equation {self.equation}",
                )

    def __str__(self) -> str:
        from tnc.net.text import print_network

        return print_network(self)

    @cached_property
    def size(self) -> dict[str, int]:
        """Size by index name."""
        return dict(self.sizes)

    def shape(self, core: Core) -> tuple[int, ...]:
        """The shape of one core's tensor."""
        return tuple(self.size[name] for name in core.indices)

    def stored(self, core: Core) -> int:
        """The number of entries that one core keeps: all of them unless it is sparse."""
        return self.size[core.stored] if core.stored else prod(self.shape(core))

    def density(self, core: Core) -> float:
        """The share of a core's entries that it keeps."""
        return self.stored(core) / prod(self.shape(core))

    def extent(self, axis: Axis) -> int:
        """The product of the sizes of a group of indices."""
        # a list, since torch.compile traces this where a convolution is planned, without generators
        return prod([self.size[name] for name in axis])

    @cached_property
    def signature(self) -> Signature:
        """The dimensions that the network covers, padding included."""
        return Signature(
            tuple(self.extent(axis) for axis in self.equation.outputs),
            tuple(self.extent(axis) for axis in self.equation.inputs),
        )


@dataclass(frozen=True)
class Structure:
    """A sum of networks that cover one signature; what they cover beyond it is padding.

    Core names are unique over all terms: they are the parameter names of the layer.
    """

    signature: Signature
    terms: tuple[Network, ...]

    @classmethod
    def of(cls, *terms: Network, signature: Signature | None = None) -> Structure:
        """Build a sum; without a signature, that of the first term."""
        return cls(signature or terms[0].signature, terms)

    def __post_init__(self) -> None:
        if not self.terms:
            raise EquationError("a structure needs at least one network")
        for term in self.terms:
            covered = term.signature
            same = len(covered.outputs) == len(self.signature.outputs) and len(
                covered.inputs
            ) == len(self.signature.inputs)
            if not same or any(c < d for c, d in zip(covered.shape, self.signature.shape)):
                raise EquationError(
                    f"a network covers {covered}, the weight is {self.signature}",
                    where=f"network {term}",
                )
        names = [core.name for term in self.terms for core in term.equation.cores]
        if len(set(names)) != len(names):
            raise EquationError(
                "core names repeat over the terms of a sum",
                where=f"structure {self}",
                hint="give every core of the sum its own name",
            )

    def __str__(self) -> str:
        return " + ".join(str(term) for term in self.terms)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every core by name, in order."""
        return {core.name: term.shape(core) for term in self.terms for core in term.equation.cores}

    @cached_property
    def stored(self) -> dict[str, int]:
        """Number of stored entries of every sparse core by name."""
        return {
            core.name: term.stored(core)
            for term in self.terms
            for core in term.equation.cores
            if core.stored
        }

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Kind of every core by name: trainable, frozen or constant."""
        return {core.name: core.kind for term in self.terms for core in term.equation.cores}

    @property
    def padded(self) -> bool:
        """Whether any term covers more than the weight."""
        return any(term.signature != self.signature for term in self.terms)
