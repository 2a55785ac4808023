"""One structured layer whose ranks change, and the optimizer that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import FitError
from tnc.net import Network, Structure
from tnc.nn import StructuredLayer
from tnc.nn.rebuilt import SUFFIX
from tnc.optim import move_, refusal
from tnc.optim.forms import form_of
from tnc.optim.kinds import OURS
from tnc.optim.moving import along
from tnc.rank_adaptation.tree import ends, refuses_tree

BondMaps = Mapping[str, Mapping[str, Tensor]]
"""By core and bond: how the core's gradient moves along the bond, `[new size, old size]`."""


@dataclass(eq=False)
class Adapted:
    """A layer of one network, by the path of its module; `start` are the ranks at the beginning."""

    path: str
    layer: StructuredLayer
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    memory: dict[str, Any] = field(default_factory=dict)
    passing: dict[str, Any] = field(default_factory=dict)
    start: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = self.ranks

    @property
    def network(self) -> Network:
        """The layer's only term."""
        return self.layer.structure.terms[0]

    @property
    def ranks(self) -> dict[str, int]:
        """Size of every bond."""
        term = self.network
        return {bond: term.size[bond] for bond in term.equation.bonds}

    @property
    def cores(self) -> dict[str, nn.Parameter]:
        """Parameter of every core."""
        return {name: self.layer.cores[name] for name in self.layer.structure.shapes}

    @property
    def values(self) -> dict[str, Tensor]:
        """Detached values of the cores, sharing their memory."""
        return {name: core.detach() for name, core in self.cores.items()}

    @property
    def params(self) -> int:
        """Number of entries of the cores."""
        return sum(prod(shape) for shape in self.layer.structure.shapes.values())

    def axis(self, core: str, index: str) -> int:
        """Return the dimension of a core that an index names."""
        return self.network.equation.core(core).indices.index(index)

    @property
    def unhooked(self) -> str:
        """Say why no forward pass of the layer can be watched; empty when one can."""
        if self.path.endswith(SUFFIX):
            return "other code reads its weight, so that it has no forward pass of its own"
        return ""

    def refuses(self) -> str:
        """Say why no method could change the layer's ranks; empty when one could."""
        structure = self.layer.structure
        if len(structure.terms) != 1:
            return f"its weight is a sum of {len(structure.terms)} networks"
        held = [name for name, kind in structure.kinds.items() if kind != "trainable"]
        if held:
            return f"core {held[0]} is {structure.kinds[held[0]]}"
        for name, core in self.cores.items():
            if not core.requires_grad:
                return f"core {name} does not require gradients"
            if hasattr(core, "device_mesh"):
                return f"core {name} is distributed over devices"
            if core.dtype not in (torch.float32, torch.float64):
                return f"core {name} is {core.dtype}; decompositions need float32 or float64"
            reason = refusal(self.optimizer, core)
            if reason:
                return f"core {name}: {reason}"
        return refuses_tree(self.network)

    @torch.no_grad()
    def set_(self, values: Mapping[str, Tensor], maps: BondMaps) -> None:
        """Give cores new values, of any bond sizes; parameters and optimizer state follow.

        A core of unchanged shape stays the same parameter. Raises FitError where a value is not
        finite, BindError where the optimizer cannot follow; the layer is unchanged then.
        """
        self.check(values)
        sizes = dict(self.network.size)
        cores = self.cores
        for name, value in values.items():
            indices = self.network.equation.core(name).indices
            sizes.update(zip(indices, value.shape))
        term = Network.of(self.network.equation, sizes)
        for name, value in values.items():
            axes = {self.axis(name, bond): m for bond, m in maps.get(name, {}).items()}
            old = cores[name]
            if old.shape == value.shape:
                old.copy_(value)
            else:
                cores[name] = nn.Parameter(
                    value.to(old).clone(memory_format=torch.contiguous_format)
                )
            move_(self.optimizer, old, cores[name], axes)
        if term != self.network:
            structure = Structure.of(term, signature=self.layer.structure.signature)
            self.layer.restructure_(structure, cores)

    def insert_(self, bond: str, into: Tensor, out: Tensor) -> None:
        """Put `into[bond, new]` and `out[new, bond]` in a bond; state moves by the adjoints."""
        first, second = ends(self.network, bond)
        values = self.values
        self.set_(
            {
                first: along(values[first], self.axis(first, bond), into.T),
                second: along(values[second], self.axis(second, bond), out),
            },
            {first: {bond: out}, second: {bond: into.T}},
        )

    def keep_(self, bond: str, kept: Tensor) -> None:
        """Keep some slices of a bond, by number."""
        if len(kept) < self.ranks[bond]:
            like = next(iter(self.values.values()))
            chosen = torch.eye(self.ranks[bond]).to(like)[kept]
            self.insert_(bond, chosen.T, chosen)

    def grow_(self, bond: str, slices: Mapping[str, Tensor]) -> None:
        """Add slices `[new, other dimensions in order]` to the two cores of a bond."""
        values, found, maps = self.values, {}, {}
        for name, fresh in slices.items():
            axis = self.axis(name, bond)
            found[name] = torch.cat([values[name], fresh.movedim(0, axis)], dim=axis)
            old = self.ranks[bond]
            maps[name] = {bond: torch.eye(old + len(fresh)).to(values[name])[:, :old]}
        self.set_(found, maps)

    def forget_(self) -> None:
        """Drop the optimizer's state of the cores, steps included: a clean start.

        What `tnc.bind` keeps there, a core's share of the weight's decay, stays.
        """
        mine = {id(core) for core in self.cores.values()}
        for group in self.optimizer.param_groups:
            for core in (p for p in group["params"] if id(p) in mine):
                state = self.optimizer.state.pop(core, {})
                kept = {slot: state[slot] for slot in state if slot in OURS}
                if kept:  # a state that is there has to be whole
                    initial = form_of(self.optimizer, group).initial(core, group)
                    self.optimizer.state[core] = initial | kept

    def check(self, values: Mapping[str, Tensor]) -> None:
        """Raise FitError where a value is not finite."""
        wrong = [name for name, value in values.items() if not bool(value.isfinite().all())]
        if wrong:
            raise FitError(
                f"core {wrong[0]} of the layer is no longer finite",
                where=self.path,
                hint="lower the learning rate, or clip gradients before the step",
            )
