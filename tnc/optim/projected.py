"""Rules that keep Adam's moments within a low-rank subspace of each matrix: GaLore's relatives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from tnc.optim.kinds import Group, Kind, State
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.projections import (
    down,
    due,
    facing,
    is_right,
    projected_floats,
    projected_shape,
    projected_start,
    refuses_projection,
    top_subspace,
    up,
)
from tnc.optim.rule import STEP, Rule
from tnc.optim.shared_options import Renewed


class Projected(Renewed, Rule):
    """`W -= lr scale change`, where Adam's moments are those of `g = G P^T`.

    Moments stay as they are when the projector is taken anew; its rows point the way of those that
    they replace (`facing`). State of a matrix (m, n), m at least n: `exp_avg` and `exp_avg_sq`
    (m, r), `projector` (r, n). When the weight becomes cores, its momentum `m P` is pulled to them
    and projected anew, by the leading subspace of what came; the second moment goes the same way,
    by squares.
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.COVECTOR,
        "exp_avg_sq": Kind.DIAGONAL,
        "projector": Kind.OPAQUE,
        "right": Kind.OPAQUE,
    }
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {
        "exp_avg_sq": lambda state, group: 1 - group["betas"][1] ** float(state[STEP])
    }

    lr = 1e-2

    @abstractmethod
    def subspace(self, matrix: Tensor, state: State, group: Group) -> Tensor:
        """Return a new projector from a gradient, `(rank, side)`, rows orthonormal."""

    @abstractmethod
    def change(self, matrix: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        """Return the change of the weight by a gradient, before `-lr scale`."""

    def refuses(self, weight: Tensor, group: Group) -> str:
        return refuses_projection(weight)

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return projected_start(as_matrix(weight), group["rank"])

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        matrix = as_matrix(gradient)
        if due(state, group):
            state["projector"] = facing(self.subspace(matrix, state, group), state["projector"])
        change = self.change(matrix, state, group).reshape(weight.shape)
        weight.add_(change, alpha=-group["lr"] * group["scale"])
        self.decay_(weight, state, group)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * projected_floats(matrix_shape(shape), group["rank"])

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        if "projector" not in state:
            return {}
        projector, right = state["projector"], state["right"]
        lifted = {
            "exp_avg": up(state["exp_avg"], projector, right),
            "exp_avg_sq": up(state["exp_avg_sq"], projector.square(), right),
        }
        return {slot: value.reshape(weight.shape) for slot, value in lifted.items()}

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        if not {"exp_avg", "exp_avg_sq"} <= set(moved):
            return {}
        matrix = as_matrix(moved["exp_avg"])
        right = is_right(matrix)
        rank = projected_shape((matrix.shape[0], matrix.shape[1]), group["rank"])[right]
        projector = top_subspace(matrix, rank, right)
        square = down(as_matrix(moved["exp_avg_sq"]), projector.square(), right)
        return {
            "exp_avg": down(matrix, projector, right),
            "exp_avg_sq": square,
            "projector": projector,
        }
