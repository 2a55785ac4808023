"""Rules that keep Adam's moments for r of the coordinates of each matrix, in a basis that stays.

The basis is orthonormal and known without being stored: unit vectors, or cosines. So a coordinate
that is chosen again keeps its moments exactly, second ones too: the map from one choice to the next
is a selection. A coordinate that enters starts as a new parameter would: its moments are zero and
are debiased by its own age, not by the matrix's. (By the matrix's, its first step would be
`(1 - b1) / sqrt(1 - b2)` of lr, 3.2 times too large with the usual betas.)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind, State
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.projections import due, is_right
from tnc.optim.rule import Rule
from tnc.optim.shared_options import Renewed

OLD = 2**24
"""An age at which nothing is left to debias."""


class Selected(Renewed, Rule):
    """`g` = r coordinates of each row of G; `W <- (1 - lr wd) W - lr scale (Adam(g) in the basis)`.

    A matrix is turned so that its shorter side is the last: rows (m), coordinates (n). State:
    `exp_avg` and `exp_avg_sq` (m, r), `index` (r) ascending, `age` (r) steps that a coordinate has
    been chosen for. When the weight becomes cores, debiased moments are lifted, moved to the cores,
    and those coordinates chosen where most of the momentum is.
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.COVECTOR,
        "exp_avg_sq": Kind.DIAGONAL,
        "index": Kind.OPAQUE,
        "age": Kind.OPAQUE,
        "right": Kind.OPAQUE,
    }
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {
        "exp_avg_sq": lambda state, group: 1.0
    }

    scale = 1.0
    eps = 1e-8

    @abstractmethod
    def coordinates(self, rows: Tensor) -> Tensor:
        """Return all coordinates of each row, `(m, n)`."""

    @abstractmethod
    def outside(self, small: Tensor, index: Tensor, size: int) -> Tensor:
        """Return rows `(m, size)` from their coordinates `(m, r)`."""

    @abstractmethod
    def choose(self, found: Tensor, rank: int, state: State, group: Group) -> Tensor:
        """Return the places of `rank` coordinates, in any order, from all coordinates."""

    def received(self, rows: Tensor, state: dict[str, Any]) -> Tensor:
        """Return what is to be projected, from the gradient's rows."""
        return rows

    def left(self, rows: Tensor, inside: Tensor, state: dict[str, Any]) -> None:
        """Take note of what was to be projected and what of it the coordinates hold."""

    def refuses(self, weight: Tensor, group: Group) -> str:
        return "" if weight.dim() >= 2 else "it is no matrix, whose coordinates could be chosen"

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        matrix = as_matrix(weight)
        long, rank = max(matrix.shape), min(group["rank"], *matrix.shape)
        place: dict[str, Any] = {"dtype": torch.int32, "device": weight.device}
        return {
            "exp_avg": weight.new_zeros(long, rank),
            "exp_avg_sq": weight.new_zeros(long, rank),
            "index": torch.arange(rank, **place),
            "age": torch.zeros(rank, **place),
            "right": is_right(matrix),
        }

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        matrix, right = as_matrix(gradient), state["right"]
        rows = self.received(matrix if right else matrix.mT, state)
        found = self.coordinates(rows)
        if due(state, group):
            chosen = self.choose(found, len(state["index"]), state, group)
            reselect(state, chosen.sort().values.to(torch.int32), found.shape[1])
        index = state["index"]
        small = found.index_select(1, index)
        del found
        self.left(rows, small, state)
        change = self.outside(aged_adam_direction(small, state, group), index, rows.shape[1])
        self.decay_(weight, state, group)
        step = (change if right else change.mT).reshape(weight.shape)
        weight.add_(step, alpha=-group["lr"] * group["scale"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        matrix = matrix_shape(shape)
        rank: int = min(group["rank"], *matrix)
        return 4 * (2 * max(matrix) * rank + 2 * rank)

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        if "index" not in state:
            return {}
        size, right = min(as_matrix(weight).shape), state["right"]
        basis = self._basis(state["index"], size, state["exp_avg"])
        found = {}
        for slot, beta, used in zip(MOMENTS, group["betas"], (basis, basis.square()), strict=True):
            value = debiased(state[slot], state["age"], beta) @ used
            found[slot] = (value if right else value.mT).reshape(weight.shape)
        return found

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        if not set(MOMENTS) <= set(moved):
            return {}
        mean, square = (as_matrix(moved[slot]) for slot in MOMENTS)
        if not is_right(mean):
            mean, square = mean.mT, square.mT
        rank = min(group["rank"], mean.shape[1])
        index = strongest(self.coordinates(mean), rank).sort().values.to(torch.int32)
        basis = self._basis(index, mean.shape[1], mean)
        return {
            "exp_avg": mean @ basis.mT,
            "exp_avg_sq": square @ basis.square().mT,
            "index": index,
            "age": torch.full_like(index, OLD),
        }

    def _basis(self, index: Tensor, size: int, like: Tensor) -> Tensor:
        unit = torch.eye(len(index), dtype=like.dtype, device=like.device)
        return self.outside(unit, index, size)


MOMENTS = ("exp_avg", "exp_avg_sq")


def strongest(found: Tensor, rank: int) -> Tensor:
    """Return the places of the coordinates whose absolute values have the largest sums."""
    return found.abs().sum(0).topk(rank).indices


def reselect(state: dict[str, Any], index: Tensor, size: int) -> None:
    """Move moments and ages to another choice: exact where it is the same, zero where it is new."""
    before = state["index"]
    place = torch.full((size,), -1, dtype=torch.int64, device=index.device)
    place[before.long()] = torch.arange(len(before), device=index.device)
    source = place[index.long()]
    kept = source >= 0
    source = source.clamp_min(0)
    for slot in MOMENTS:
        state[slot] = state[slot].index_select(1, source).mul_(kept)
    state["age"] = state["age"].index_select(0, source).mul_(kept)
    state["index"] = index


def debiased(moment: Tensor, age: Tensor, beta: float) -> Tensor:
    """Return a moment over `1 - beta^age`, column by column; zero where the age is."""
    weight = 1 - torch.pow(beta, age.double())
    inverse = torch.where(age > 0, 1 / weight, 0.0)
    return moment * inverse.to(moment.dtype)


def aged_adam_direction(gradient: Tensor, state: State, group: Group) -> Tensor:
    """As `adam_direction`, with the age of every column in place of the step."""
    first, second = group["betas"]
    state["age"].add_(1)
    mean, square, age = state["exp_avg"], state["exp_avg_sq"], state["age"]
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    root = debiased(square, age, second).sqrt_().add_(group["eps"])
    return debiased(mean, age, first).div_(root)
