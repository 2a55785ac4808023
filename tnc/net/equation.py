"""Equations: cores with named legs and the linear map that they perform."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from tnc.errors import EquationError

Axis = tuple[str, ...]
"""An ordered group of index names that forms one model dimension (768 = 8 x 8 x 12)."""

KINDS = ("trainable", "frozen", "constant")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*'*\Z")


@dataclass(frozen=True)
class Core:
    """One factor: a tensor whose modes carry index names, in storage order.

    With `stored` the core is sparse: that size counts the entries that it keeps, the others are
    zero. It acts as a rank does, and is no index.
    """

    name: str
    indices: Axis
    kind: str = "trainable"
    stored: str = ""


@dataclass(frozen=True)
class Equation:
    """Cores and the map from input legs to output legs; no sizes.

    The law of well-formedness: every index has at least two ends, counted over cores, inputs and
    outputs. An index may join any number of them. A tensor by itself has outputs only. Raises
    EquationError with the reason.
    """

    cores: tuple[Core, ...]
    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]

    def __post_init__(self) -> None:
        reason = ill_formed(self)
        if reason:
            raise EquationError(
                reason, where=f"equation {self}", hint="example: 'B[o r] A[r i] : i -> o'"
            )

    def __str__(self) -> str:
        from tnc.net.text import print_equation

        return print_equation(self)

    @cached_property
    def input_indices(self) -> Axis:
        """All input legs in order."""
        return tuple(name for axis in self.inputs for name in axis)

    @cached_property
    def output_indices(self) -> Axis:
        """All output legs in order."""
        return tuple(name for axis in self.outputs for name in axis)

    @cached_property
    def indices(self) -> Axis:
        """Every index name, sorted."""
        names = {name for core in self.cores for name in core.indices}
        return tuple(sorted(names | set(self.input_indices) | set(self.output_indices)))

    @cached_property
    def bonds(self) -> Axis:
        """The indices that are summed inside the weight: neither input nor output legs."""
        legs = {*self.input_indices, *self.output_indices}
        return tuple(name for name in self.indices if name not in legs)

    @cached_property
    def shared(self) -> Axis:
        """The indices that are input and output leg at once (block-diagonal structure)."""
        return tuple(n for n in self.output_indices if n in set(self.input_indices))

    @cached_property
    def names(self) -> Axis:
        """Every name that has a size: indices, then what counts the entries of sparse cores."""
        return (*self.indices, *self.counts)

    @cached_property
    def counts(self) -> Axis:
        """The sizes that count the stored entries of sparse cores."""
        return tuple(core.stored for core in self.cores if core.stored)

    def renamed(self, cores: Mapping[str, str], indices: Mapping[str, str]) -> Equation:
        """Return the equation with other names for some of its cores and indices."""

        def axis(names: Axis) -> Axis:
            return tuple(indices.get(name, name) for name in names)

        return Equation(
            tuple(
                replace(
                    core,
                    name=cores.get(core.name, core.name),
                    indices=axis(core.indices),
                    stored=indices.get(core.stored, core.stored),
                )
                for core in self.cores
            ),
            tuple(map(axis, self.inputs)),
            tuple(map(axis, self.outputs)),
        )

    def core(self, name: str) -> Core:
        """Return the core called `name`. Raises EquationError."""
        for core in self.cores:
            if core.name == name:
                return core
        raise EquationError(f"no core {name!r}", where=f"equation {self}")

    def regrouped(self, outputs: int, inputs: int) -> Equation:
        """Gather bare legs into one axis where the model has one: 'i1 i2 -> o' as '(i1 i2) -> o'.

        Raises EquationError when the number of axes cannot be made to fit.
        """

        def fit(axes: tuple[Axis, ...], count: int, side: str) -> tuple[Axis, ...]:
            if len(axes) == count:
                return axes
            if count == 1:
                return (tuple(name for axis in axes for name in axis),)
            raise EquationError(
                f"{len(axes)} {side} axes where the weight has {count}",
                where=f"equation {self}",
                hint="group legs with parentheses: '(i1 i2) h w -> (o1 o2)'",
            )

        return replace(
            self,
            outputs=fit(self.outputs, outputs, "output"),
            inputs=fit(self.inputs, inputs, "input"),
        )


def ill_formed(equation: Equation) -> str:
    """Say why an equation is not well formed; empty when it is."""
    if not equation.cores:
        return "no core"
    for core in equation.cores:
        if not _NAME.match(core.name):
            return f"core name {core.name!r} is not a letter followed by letters and digits"
        if core.kind not in KINDS:
            return f"core {core.name} is {core.kind!r}, not one of {', '.join(KINDS)}"
        if len(set(core.indices)) != len(core.indices):
            return f"core {core.name} carries an index twice"
    doubled = [n for n, k in Counter(c.name for c in equation.cores).items() if k > 1]
    if doubled:
        return f"two cores are named {doubled[0]}"
    for side, axes in (("input", equation.inputs), ("output", equation.outputs)):
        legs = Counter(name for axis in axes for name in axis)
        twice = [n for n, k in legs.items() if k > 1]
        if twice:
            return f"index {twice[0]} is an {side} leg twice"
        if not legs and side == "output":
            return "no output leg"
    ends = Counter(n for core in equation.cores for n in core.indices)
    ends.update(equation.input_indices)
    ends.update(equation.output_indices)
    for name in sorted(ends):
        if not _NAME.match(name):
            return f"index name {name!r} is not a letter followed by letters and digits"
        if ends[name] < 2:
            return f"index {name} has one end, every index needs at least two"
    for name, times in Counter(equation.counts).items():
        if not _NAME.match(name):
            return f"size name {name!r} is not a letter followed by letters and digits"
        if name in ends or times > 1:
            return f"{name} counts the entries of one sparse core, it cannot be used again"
    return ""
