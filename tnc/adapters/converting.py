"""Deltas as low-rank pairs: exactly, or by truncated SVD with the error said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

import torch
from torch import Tensor, nn

from tnc.adapters.attach import attach_
from tnc.adapters.bank import bank_of
from tnc.adapters.delta import Delta
from tnc.adapters.method import Method, Parts, methods, wide
from tnc.adapters.place import Place
from tnc.derive.cut import cut
from tnc.derive.merge import Groups, merged
from tnc.errors import PlanError
from tnc.kernels.einsums import lower
from tnc.net import Network

Pair = tuple[Tensor, Tensor]
"""Factors B `(.., outputs, r)` and A `(.., r, inputs)`; a stack of experts has one for each."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of a weight as `B A`, and what is lost: `|change - B A|` over `|change|`."""

    b: Tensor
    a: Tensor
    error: float
    norm: float

    @property
    def rank(self) -> int:
        """The size of the bond."""
        return self.a.shape[-2]


@dataclass(frozen=True)
class Line:
    """One converted weight: rank, relative error, and the norm of the change."""

    weight: str
    rank: int
    error: float
    norm: float


@dataclass(frozen=True)
class Conversion:
    """What a conversion made, by weight; `error` is that of all weights together, relative."""

    adapter: str
    lines: tuple[Line, ...]

    @property
    def error(self) -> float:
        """The norm of all that is lost over the norm of all changes."""
        lost = sum((line.error * line.norm) ** 2 for line in self.lines)
        whole = sum(line.norm**2 for line in self.lines)
        return float((lost / whole) ** 0.5) if whole else 0.0

    def __str__(self) -> str:
        head = f"{self.adapter}: {len(self.lines)} weights, relative error {self.error:.3g}"
        rows = [f"  {line.weight}: rank {line.rank}, error {line.error:.3g}" for line in self.lines]
        return "\n".join([head, *rows])


def additive(delta: Delta) -> bool:
    """Whether what merging adds is the delta itself, whatever the weight is."""
    kind = type(delta.method)
    return kind.change is Method.change and kind.base is Method.base


def low_rank(
    parts: Sequence[tuple[Delta, float]],
    weight: Tensor,
    rank: int | None = None,
    energy: float | None = None,
) -> LowRank:
    """Return what deltas of one weight add, each times its share, as the best `B A`.

    `weight` is the base in its stored layout. `rank` is the largest, `energy` the least share of
    the squared norm to be kept; without either the result is exact to rounding. A delta whose bond
    parts outputs from inputs is never made dense.
    """
    pairs = [_chained(delta, share) for delta, share in parts]
    if all(pair is not None for pair in pairs):
        b = torch.cat([pair[0] for pair in pairs if pair is not None], -1)
        a = torch.cat([pair[1] for pair in pairs if pair is not None], -2)
        return _of_pair(b, a, rank, energy)
    dense = reduce(torch.add, (changed(delta, share, weight) for delta, share in parts))
    return _of_svd(torch.linalg.svd(dense, full_matrices=False), rank, energy)


def changed(delta: Delta, share: float, weight: Tensor) -> Tensor:
    """Return what a delta adds to its weight as a matrix, or one for each of a stack."""
    with torch.no_grad():
        weight = wide(weight)
        base = delta.method.base(delta, weight)
        change = wide(base + delta.method.change(delta, base) - weight) * share
    outputs = delta.site.signature.outputs
    shape = (*outputs[:-1], outputs[-1], -1)
    return delta.mapped(change).reshape(shape)


def _chained(delta: Delta, share: float) -> Pair | None:
    """Return the factors of a delta all of whose terms are parted by one bond; None elsewhere."""
    if not additive(delta):
        return None
    cores = {name: wide(core) for name, core in delta.tensors().items()}
    pairs = [_parted(term, delta, cores) for term in delta.layer.structure.terms]
    found = [pair for pair in pairs if pair is not None]
    if len(found) != len(pairs):
        return None
    b = torch.cat([pair[0] for pair in found], -1)
    return b * (delta.factor * share), torch.cat([pair[1] for pair in found], -2)


def _parted(term: Network, delta: Delta, cores: Mapping[str, Tensor]) -> Pair | None:
    equation = term.equation
    stack = set(equation.output_indices[: len(equation.outputs) - 1])
    if term.signature != delta.site.signature or any(len(axis) != 1 for axis in equation.outputs):
        return None
    outputs = set(equation.output_indices) - stack
    for bond in equation.bonds:
        sides = cut(equation, bond)
        if sides is None or set(sides.batch) != stack or {*sides.left, *sides.right} & stack:
            continue
        if set(sides.left) == outputs and set(sides.right) == set(equation.input_indices):
            return _contracted(term, bond, cores)
    return None


def _contracted(term: Network, bond: str, cores: Mapping[str, Tensor]) -> Pair:
    """Contract the cores on either side of a bond."""
    equation = term.equation
    inputs = equation.input_indices
    left = _side(term, bond, set(equation.outputs[-1]))
    right = tuple(core.name for core in equation.cores if core.name not in left)
    groups: Groups = (left, right)
    fewer = merged(term, groups)
    made, small = dict(fewer.made), fewer.network.equation
    found = []
    stack = equation.output_indices[: len(equation.outputs) - 1]
    wanted = (*stack, equation.output_indices[-1], bond), (*stack, bond, *inputs)
    for group, legs in zip(groups, wanted):
        if group[0] in made:
            contraction = made[group[0]]
            tensor = lower(contraction).run([cores[name] for name in group])
        else:
            tensor = cores[group[0]]
        held = small.core(group[0]).indices
        full = tensor.permute([held.index(leg) for leg in legs if leg in held])
        found.append(full)
    b, a = found
    sizes = [term.size[leg] for leg in stack]
    return b, a.reshape(*sizes, term.size[bond], prod(term.size[leg] for leg in inputs))


def _side(term: Network, bond: str, legs: set[str]) -> tuple[str, ...]:
    """Return the names of the cores that are connected with `legs` without a bond."""
    bonds = set(term.equation.bonds) - {bond}
    cores = term.equation.cores
    side = {core.name for core in cores if legs & set(core.indices)}
    while True:
        reached = bonds & {n for core in cores if core.name in side for n in core.indices}
        more = {core.name for core in cores if reached & set(core.indices)}
        if more <= side:
            return tuple(core.name for core in cores if core.name in side)
        side |= more


def _of_pair(b: Tensor, a: Tensor, rank: int | None, energy: float | None) -> LowRank:
    left, inner = torch.linalg.qr(b)
    right, outer = torch.linalg.qr(a.mH)
    u, s, v = torch.linalg.svd(inner @ outer.mH, full_matrices=False)
    return _of_svd((left @ u, s, v @ right.mH), rank, energy)


def _of_svd(svd: tuple[Tensor, Tensor, Tensor], rank: int | None, energy: float | None) -> LowRank:
    u, s, v = svd
    kept = _kept(s, rank, energy, u.shape[-2] + v.shape[-1])
    root = s[..., :kept].sqrt()
    whole = float(s.double().square().sum())
    lost = float(s[..., kept:].double().square().sum())
    return LowRank(
        u[..., :kept] * root.unsqueeze(-2),
        root.unsqueeze(-1) * v[..., :kept, :],
        (lost / whole) ** 0.5 if whole else 0.0,
        whole**0.5,
    )


def _kept(values: Tensor, rank: int | None, energy: float | None, size: int) -> int:
    """Return how many singular values are kept, at least 1; of a stack as many for every one."""
    largest = float(values.max()) if values.numel() else 0.0
    found = int((values > largest * size * torch.finfo(values.dtype).eps).sum(-1).max())
    if energy is not None:
        squares = values.double().square().flip(-1).cumsum(-1).flip(-1)
        most = (1 - energy) * squares[..., :1]
        found = min(found, int((squares > most + 1e-300).sum(-1).max()))
    return max(1, found if rank is None else min(rank, found))


def put_low_rank_(model: nn.Module, place: Place, adapter: str, found: LowRank) -> Delta:
    """Put a pair beside a weight as a LoRA adapter of factor 1, not in use."""
    method = methods.get("lora")(rank=found.rank)  # type: ignore[call-arg]
    structure = method.structure(place.site)
    shapes = structure.shapes
    parts = Parts({"B": found.b.reshape(shapes["B"]), "A": found.a.reshape(shapes["A"])})
    delta = attach_(model, place, adapter, method, structure, parts)
    for owner in place.owners:
        bank = bank_of(model.get_submodule(owner.path))
        assert bank is not None
        bank.active.pop(adapter, None)
    return delta


def check_asked(rank: int | None, energy: float | None) -> None:
    """Raise PlanError for ranks and shares that are none."""
    if rank is not None and rank < 1:
        raise PlanError(f"rank is {rank}", hint="a low-rank delta has a rank from 1")
    if energy is not None and not 0 < energy <= 1:
        raise PlanError(f"energy is {energy}", hint="give a share above 0, at most 1")
