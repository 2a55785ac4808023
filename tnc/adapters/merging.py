"""Base and deltas as one weight: dense ones added, structured ones as one sum of networks."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnc.adapters.bank import Bank, bank_of
from tnc.adapters.base import base_weight
from tnc.adapters.combined import Using
from tnc.adapters.delta import Delta
from tnc.adapters.equations import outermost
from tnc.adapters.start import wide
from tnc.errors import PlanError
from tnc.net import Core, Equation, Network, Structure
from tnc.nn import StructuredLayer


@dataclass(frozen=True)
class Drift:
    """What rounding to the weight's type costs when merging: the largest entry of the difference,
    and its norm over that of what the adapters add."""

    weight: str
    largest: float
    relative: float


def merged(module: nn.Module, bank: Bank, name: str) -> tuple[Tensor | Summed, Drift]:
    """Return the weight of an adapted module with what the active adapters add, and the drift.

    Raises PlanError where it is not finite, or where a structured base has no place for it.
    """
    using = bank.using(name)
    site = using[0][0].site.name
    if isinstance(module, StructuredLayer):
        found = summed(site, module, using)
        return found, found.drift
    return merged_dense(site, base_weight(module, name), lambda base: bank.changed(name, base))


@torch.no_grad()
def merge_again_(module: nn.Module) -> None:
    """Merge the weights of a module anew, those that are merged: base or deltas have changed.

    Raises PlanError where one is not finite; the module is then not merged.
    """
    bank = bank_of(module)
    assert bank is not None
    names, bank.merged = tuple(bank.merged), {}
    made = {name: merged(module, bank, name)[0] for name in names}
    bank.merged = {name: acting(each) for name, each in made.items()}


def acting(made: Tensor | Summed) -> Tensor | StructuredLayer:
    """Return what stands for a base while it is merged."""
    return made.layer if isinstance(made, Summed) else made


def after_loading_(module: nn.Module, keys: object) -> None:
    """Let a merged module compute with a state that was loaded: a hook of torch's, for one."""
    bank = bank_of(module)
    if bank is not None:
        bank.loads += 1
        merge_again_(module)


def merged_dense(
    name: str, weight: Tensor, change: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Drift]:
    """Return a weight with what is added, in its own type, and the drift.

    `change` returns the changed weight; it is run in float32 or wider and rounded once. Raises
    PlanError where the result is not finite.
    """
    base = wide(weight)
    exact = change(base).detach()
    return _rounded(name, exact, base, exact.to(weight.dtype))


def _rounded(name: str, exact: Tensor, base: Tensor, made: Tensor) -> tuple[Tensor, Drift]:
    if not bool(made.isfinite().all()):
        raise PlanError(
            f"the merged weight {name} is not finite",
            where=name,
            hint="look for NaN in the adapter's parameters, or for values that the weight's type "
            f"{str(made.dtype).removeprefix('torch.')} does not hold",
        )
    off, added = wide(made) - exact, exact - base
    size = float(added.norm())
    relative = float(off.norm()) / size if size else 0.0
    return made, Drift(name, float(off.abs().max()), relative)


@dataclass(frozen=True, eq=False)
class Summed:
    """A structure with its cores, ready for a structured layer; cores of the base are shared."""

    structure: Structure
    cores: dict[str, nn.Parameter]
    positions: dict[str, Tensor]
    layer: StructuredLayer
    """It as a layer, which applies it as the base is applied."""
    drift: Drift


def summed(name: str, layer: StructuredLayer, using: Using) -> Summed:
    """Return base and deltas as one sum of networks, exact but for the type of the cores.

    Factors and shares are multiplied into a core of each delta. Where a method multiplies rows, so
    is what multiplies them, into the core that carries all output legs, or there is one core more
    that does: an index joins as many cores as it likes. Cores and bonds of equal names are
    numbered. Raises PlanError for methods whose change is no sum of networks.
    """
    for delta, _ in using:
        _check(delta)
    weight = StructuredLayer.weight.fget(layer).detach()  # type: ignore[attr-defined]
    ratios = [delta.method.rows(delta, weight) for delta, _ in using]
    whole = None
    for ratio, (_, share) in zip(ratios, using):
        if ratio is not None:
            whole = (1.0 if whole is None else whole) + share * (wide(ratio) - 1)
    made = _Sum(layer)
    for term in layer.structure.terms:
        made.add(term, dict(layer.cores.items()), layer.positions, None, whole)
    for ratio, (delta, share) in zip(ratios, using):
        cores, positions = _acting(delta)
        for term in delta.layer.structure.terms:
            made.add(term, cores, positions, delta.factor * share, ratio)
    structure = Structure(layer.structure.signature, tuple(made.terms))
    bias = layer._parameters["bias"]
    found = StructuredLayer(structure, layer.view, made.cores, bias, made.positions)
    exact = wide(weight)
    for delta, share in using:
        exact = exact + wide(delta.method.change(delta, wide(weight))) * share
    _, drift = _rounded(name, exact, wide(weight), found.weight.detach())
    return Summed(structure, made.cores, made.positions, found.train(layer.training), drift)


def _check(delta: Delta) -> None:
    if type(delta.method).plain():
        return
    raise PlanError(
        f"what {delta.method} adds to {delta.site.name} is no sum of networks",
        where=delta.site.name,
        hint="to_lora(name=...) makes an adapter of it that can be merged: use that one",
    )


def _acting(delta: Delta) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the cores of a delta as they act, sparse ones as they are stored."""
    layer = delta.layer
    stored = {name: layer.cores[name] for name in layer.positions}
    return {**delta.tensors(), **stored}, layer.positions


class _Sum:
    """Networks of one sum as they are gathered, with unique names."""

    def __init__(self, layer: StructuredLayer) -> None:
        self.terms: list[Network] = []
        self.cores: dict[str, nn.Parameter] = {}
        self.positions: dict[str, Tensor] = {}
        self._like = next(iter(layer.cores.values()))
        self._trains = any(core.requires_grad for core in layer.cores.values())
        self._bonds: set[str] = set()

    def add(
        self,
        term: Network,
        cores: dict[str, Tensor],
        positions: dict[str, Tensor],
        factor: float | None,
        rows: Tensor | None,
    ) -> None:
        """Add a network times `factor`, its rows times `rows`; without both its cores are kept."""
        own = {core.name: cores[core.name] for core in term.equation.cores}
        if factor is not None:
            first = _folds_into(term)
            own[first] = wide(own[first]) * factor
        if rows is not None:
            term = _scale_rows(term, own, positions, rows)
        names = {core.name: _free(core.name, self.cores) for core in term.equation.cores}
        renamed: dict[str, str] = {}
        for name in (*term.equation.bonds, *term.equation.counts):
            others = (set(term.size) - {name}) | set(renamed.values())
            renamed[name] = _free(name, self._bonds | others)
        self._bonds |= set(renamed.values())
        equation = term.equation.renamed(names, renamed)
        sizes = {renamed.get(n, n): size for n, size in term.sizes}
        self.terms.append(Network.of(equation, sizes))
        for core in term.equation.cores:
            self._keep(names[core.name], core.kind, own[core.name])
            if core.name in positions:
                self.positions[names[core.name]] = positions[core.name].to(self._like.device)

    def _keep(self, name: str, kind: str, value: Tensor) -> None:
        trains = self._trains and kind == "trainable"
        if not isinstance(value, nn.Parameter) or value.dtype != self._like.dtype:
            made = value.detach().to(self._like).clone(memory_format=torch.contiguous_format)
            value = nn.Parameter(made, requires_grad=trains)
        elif value.requires_grad and not trains:  # a delta's beside a frozen base
            value = nn.Parameter(value.detach(), requires_grad=False)
        self.cores[name] = value


def _free(name: str, taken: Container[str]) -> str:
    """Return a name, numbered where it is taken."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def _folds_into(term: Network) -> str:
    """Return the core that a number is multiplied into."""
    kinds = {core.kind for core in term.equation.cores}
    return outermost(term) if "trainable" in kinds else term.equation.cores[0].name


def _scale_rows(
    term: Network, cores: dict[str, Tensor], positions: dict[str, Tensor], rows: Tensor
) -> Network:
    """Multiply the rows of a network, in one of its cores or by one core more."""
    equation = term.equation
    legs = equation.output_indices
    sizes = [term.size[name] for name in legs]
    scale = functional.pad(rows, (0, prod(sizes) - rows.numel()), value=1.0).reshape(sizes)
    holder = next((c for c in equation.cores if set(legs) <= set(c.indices)), None)
    if holder is None:
        name = "M"
        while name in cores:
            name += "'"
        cores[name] = scale
        added = Equation((Core(name, legs), *equation.cores), equation.inputs, equation.outputs)
        return Network.of(added, term.size)
    order = [name for name in holder.indices if name in legs]
    scale = scale.permute([legs.index(name) for name in order])
    shape = [term.size[name] if name in legs else 1 for name in holder.indices]
    whole = scale.reshape(shape).expand(term.shape(holder))
    if holder.stored:
        whole = whole.flatten()[positions[holder.name].long()]
    cores[holder.name] = wide(cores[holder.name]) * whole
    return term
