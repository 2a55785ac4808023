"""Pairs of factors that stand for one weight, and rules that update each by the other's values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tnc.errors import BindError
from tnc.net import Network, Structure
from tnc.optim.declaring import argument
from tnc.optim.kinds import Group
from tnc.optim.rule import Part, Rule


@dataclass(frozen=True, eq=False)
class Side:
    """A factor of a pair: its parameter, and which of its axes the other factor has too.

    `batch` are axes that the weight has as well, `bond` those that are summed; in the same order on
    both sides. As a matrix a factor is `(batch, rest, bond)`.
    """

    parameter: Tensor
    batch: tuple[int, ...]
    bond: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The parameter's axes as its matrix has them."""
        rest = set(range(self.parameter.dim())) - set(self.batch) - set(self.bond)
        return (*self.batch, *sorted(rest), *self.bond)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The sizes of batch, rest and bond."""
        shape = [self.parameter.shape[axis] for axis in self.order]
        first, last = len(self.batch), len(shape) - len(self.bond)
        return prod(shape[:first]), prod(shape[first:last]), prod(shape[last:])

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the parameter's shape as `(batch, rest, bond)`."""
        return tensor.permute(self.order).reshape(self.sizes)

    def back(self, matrix: Tensor) -> Tensor:
        """Return a matrix in the parameter's shape: the way back."""
        order = self.order
        turned = matrix.reshape([self.parameter.shape[axis] for axis in order])
        return turned.permute([order.index(axis) for axis in range(len(order))])


@dataclass(frozen=True, eq=False)
class Pair:
    """Two factors whose product is a weight, or a term of one."""

    first: Side
    second: Side


def product(first: Tensor, second: Tensor) -> Pair:
    """Return the pair of the weight `first @ second`. Raises BindError where they do not fit."""
    if first.dim() != 2 or second.dim() != 2 or first.shape[1] != second.shape[0]:
        raise BindError(
            f"factors of shapes {tuple(first.shape)} and {tuple(second.shape)} have no product",
            hint="give (U, V) with U (m, r) and V (r, n): the weight is U @ V",
        )
    return Pair(Side(first, (), (1,)), Side(second, (), (0,)))


def pairs_of(model: nn.Module) -> Iterator[Pair]:
    """Find the structured terms of a model that are two dense trainable cores with a bond.

    Low rank, two-core trains, block trains and Monarch are such. A structured layer is known by
    its `structure` and `cores`.
    """
    for module in model.modules():
        structure, cores = getattr(module, "structure", None), getattr(module, "cores", None)
        if isinstance(structure, Structure) and cores is not None:
            for term in structure.terms:
                pair = _pair(term, cores)
                if pair is not None:
                    yield pair


def _pair(term: Network, cores: Mapping[str, Tensor]) -> Pair | None:
    found = term.equation.cores
    if len(found) != 2 or any(core.kind != "trainable" or core.stored for core in found):
        return None
    first, second = found
    if any(len(set(core.indices)) != len(core.indices) for core in found):
        return None
    bonds = set(term.equation.bonds)
    shared = [name for name in first.indices if name in second.indices]
    bond = [name for name in shared if name in bonds]
    batch = [name for name in shared if name not in bonds]
    if not bond:
        return None
    sides = [
        Side(
            cores[core.name],
            tuple(core.indices.index(name) for name in batch),
            tuple(core.indices.index(name) for name in bond),
        )
        for core in found
    ]
    return Pair(*sides)


class FactorRule(Rule):
    """A rule for factors in pairs: each is updated by the values that both had before the step.

    Pairs are those of `model` (`pairs_of`), and products `(U, V)` that `pairs` names. The option
    `others` says what becomes of other parameters: 'refuse' is an error, 'plain' trains them by
    `update`. A rule that `tnc.bind` gives another model finds its pairs anew.
    """

    model: nn.Module | None = argument(default=None, kw_only=False)
    pairs: Iterable[tuple[Tensor, Tensor]] = argument(default=())
    others: Literal["refuse", "plain"] = "refuse"

    def attach(self) -> None:
        self.pairs = tuple(self.pairs)
        found = [product(*pair) for pair in self.pairs]
        found += list(pairs_of(self.model)) if self.model is not None else []
        self._sides: dict[Tensor, tuple[Side, Side]] = {}
        for pair in found:
            for own, other in ((pair.first, pair.second), (pair.second, pair.first)):
                known = self._sides.setdefault(own.parameter, (own, other))
                if known[1].parameter is not other.parameter:
                    raise BindError(
                        f"a factor of shape {tuple(own.parameter.shape)} is in two pairs",
                        hint=f"{type(self).__name__} preconditions a factor by one other",
                    )

    @abstractmethod
    def read_factor(self, matrix: Tensor, group: Group) -> Any:
        """Return what a factor's update needs of the other one, a matrix `(batch, rest, bond)`."""

    @abstractmethod
    def factor_change(
        self, gradient: Tensor, other: Any, state: dict[str, Any], group: Group
    ) -> Tensor:
        """Return the change of a factor at rate 1, from its gradient `(batch, rest, bond)`."""

    @abstractmethod
    def state_bytes(
        self, shape: tuple[int, ...], group: Group, other: tuple[int, ...] | None = None
    ) -> int:
        """Return the bytes of the slots of a parameter of a shape, `step` aside.

        Of a factor both shapes are those of matrices, `(batch, rest, bond)`.
        """

    def bytes_of(self, parameter: Tensor, group: Group) -> int:
        if not self.paired(parameter):
            return self.state_bytes(tuple(parameter.shape), group)
        own, other = self._sides[parameter]
        return self.state_bytes(own.sizes, group, other.sizes)

    def paired(self, parameter: Tensor) -> bool:
        """Whether a parameter is a factor of a pair."""
        return parameter in self._sides

    def advance(self, parts: Iterable[Part]) -> None:
        opened = list(parts)
        seen = {id(part.parameter): self._read(part) for part in opened if self._checked(part)}
        for part in opened:
            if id(part.parameter) in seen:
                side, _ = self._sides[part.parameter]
                change = self.factor_change(
                    side.matrix(part.gradient), seen[id(part.parameter)], part.state, part.group
                )
                self.decay_(part.weight, part.state, part.group)
                part.weight.add_(side.back(change), alpha=-part.group["lr"])
            else:
                self.update(part.weight, part.gradient, part.state, part.group)
            self._close(part)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters. Raises BindError for one that the rule cannot train."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for parameter in group["params"]:
                self._check(parameter, group)
        except BindError:
            self.param_groups.pop()
            raise

    def _check(self, parameter: Tensor, group: Group) -> None:
        if not self.paired(parameter) and group["others"] == "refuse":
            raise BindError(
                f"{type(self).__name__} is to train a parameter of shape "
                f"{tuple(parameter.shape)} that is no factor of a pair",
                hint="give the model whose layers are two cores, or pairs=[(U, V)] of U @ V; "
                "others='plain' trains other parameters without a partner",
            )

    def _checked(self, part: Part) -> bool:
        self._check(part.parameter, part.group)
        return self.paired(part.parameter)

    def _read(self, part: Part) -> Any:
        _, other = self._sides[part.parameter]
        values = other.parameter.detach()
        if hasattr(values, "full_tensor"):  # a DTensor
            values = values.full_tensor()
        return self.read_factor(other.matrix(values.to(part.weight.dtype)), part.group)


def inverse_gram(matrix: Tensor, damping: float) -> Tensor:
    """Return `(M^T M + damping)^-1` of matrices `(batch, n, r)`, from float64; pseudo at 0."""
    wide = matrix.double()
    gram = wide.mT @ wide
    if damping:
        gram.diagonal(dim1=-2, dim2=-1).add_(damping)
        inverse: Tensor = torch.linalg.inv(gram).to(matrix.dtype)
        return inverse
    pseudo: Tensor = torch.linalg.pinv(gram, hermitian=True).to(matrix.dtype)
    return pseudo
