"""Rules that project every axis of a parameter: Tucker subspaces of the gradient.

A gradient of shape `(n1, n2, ...)` is seen through one projector an axis, `P_k (r_k, n_k)` with
orthonormal rows: `C = G x_1 P_1 x_2 P_2 ...`. Axes no longer than their rank are left as they are.
Projectors are kept in one flat tensor, in the order of the axes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind, State
from tnc.optim.projections import due, facing, top_subspace
from tnc.optim.rule import STEP, Rule
from tnc.optim.shared_options import Renewed

Shape = tuple[int, ...]


def core_shape(shape: Shape, rank: int) -> Shape:
    """Return the shape of the projected tensor: no axis beyond `rank`, nor beyond its unfolding.

    >>> core_shape((64, 3, 3), 8), core_shape((1000, 4), 8)
    ((8, 3, 3), (4, 4))
    """
    whole = prod(shape)
    return tuple(min(size, rank, whole // max(size, 1)) for size in shape)


def projector_floats(shape: Shape, rank: int) -> int:
    """Return how many numbers the projectors of a shape hold."""
    return sum(r * n for r, n in zip(core_shape(shape, rank), shape, strict=True) if r < n)


def along(tensor: Tensor, factor: Tensor, axis: int) -> Tensor:
    """Multiply a matrix `(r, n)` into an axis of length n, which becomes r."""
    found: Tensor = torch.tensordot(tensor, factor, dims=([axis], [1])).movedim(-1, axis)
    return found


def opened(flat: Tensor, shape: Shape, rank: int) -> dict[int, Tensor]:
    """Return the projectors of the projected axes, as views of the flat tensor."""
    found, place = {}, 0
    for axis, (r, n) in enumerate(zip(core_shape(shape, rank), shape, strict=True)):
        if r < n:
            found[axis] = flat[place : place + r * n].view(r, n)
            place += r * n
    return found


def subspaces(gradient: Tensor, rank: int, before: Tensor) -> Tensor:
    """Return the flat projectors of a gradient: leading vectors of each unfolding in turn.

    Every axis is cut before the next is looked at (Vannieuwenhoven et al., A New Truncation
    Strategy for the Higher-Order SVD, 2012). Rows point the way of those that they replace.
    """
    shape = tuple(gradient.shape)
    found, rest = [], gradient
    for axis, old in opened(before, shape, rank).items():
        unfolded = rest.movedim(axis, 0).reshape(rest.shape[axis], -1)
        projector = facing(top_subspace(unfolded, len(old), 0), old)
        found.append(projector.reshape(-1))
        rest = along(rest, projector, axis)
    return torch.cat(found) if found else before


def cut(tensor: Tensor, projectors: Mapping[int, Tensor]) -> Tensor:
    """Project a tensor along every axis that has a projector."""
    for axis, projector in projectors.items():
        tensor = along(tensor, projector, axis)
    return tensor


def raised(tensor: Tensor, projectors: Mapping[int, Tensor]) -> Tensor:
    """Bring a projected tensor back: the transpose of `cut`."""
    for axis, projector in projectors.items():
        tensor = along(tensor, projector.mT, axis)
    return tensor


class Multilinear(Renewed, Rule):
    """`W -= lr scale (u x_1 P_1^T x_2 P_2^T ...)`, where Adam's moments are those of the core.

    State of a tensor (n1, n2, ...): `exp_avg` and `exp_avg_sq` (r1, r2, ...), `projectors` flat,
    `sum r_k n_k` over the projected axes. When the weight becomes cores, moments are lifted, moved
    and projected anew, by the leading subspaces of the momentum.
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.COVECTOR,
        "exp_avg_sq": Kind.DIAGONAL,
        "projectors": Kind.OPAQUE,
    }
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {
        "exp_avg_sq": lambda state, group: 1 - group["betas"][1] ** float(state[STEP])
    }

    lr = 1e-2

    @abstractmethod
    def direction(self, core: Tensor, state: dict[str, Any], group: Group) -> Tensor:
        """Return the change of the core by its gradient, before `-lr scale`."""

    def moved(
        self, before: Mapping[int, Tensor], after: Mapping[int, Tensor], state: dict[str, Any]
    ) -> None:
        """Take note that the subspaces changed."""

    def refuses(self, weight: Tensor, group: Group) -> str:
        return "" if weight.dim() >= 2 else "it has one axis only, whose subspace is a line"

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        shape, rank = tuple(weight.shape), group["rank"]
        return {
            "exp_avg": weight.new_zeros(core_shape(shape, rank)),
            "exp_avg_sq": weight.new_zeros(core_shape(shape, rank)),
            "projectors": weight.new_zeros(projector_floats(shape, rank)),
        }

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        shape, rank = tuple(weight.shape), group["rank"]
        projectors = opened(state["projectors"], shape, rank)
        if due(state, group):
            state["projectors"] = subspaces(gradient, rank, state["projectors"])
            before, projectors = projectors, opened(state["projectors"], shape, rank)
            self.moved(before, projectors, state)
        direction = self.direction(cut(gradient, projectors), state, group)
        weight.add_(raised(direction, projectors), alpha=-group["lr"] * group["scale"])
        self.decay_(weight, state, group)

    def state_bytes(self, shape: Shape, group: Group) -> int:
        rank = group["rank"]
        return 4 * (2 * prod(core_shape(shape, rank)) + projector_floats(shape, rank))

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        if "projectors" not in state:
            return {}
        projectors = opened(state["projectors"], tuple(weight.shape), group["rank"])
        squares = {axis: projector.square() for axis, projector in projectors.items()}
        return {
            "exp_avg": raised(state["exp_avg"], projectors).contiguous(),
            "exp_avg_sq": raised(state["exp_avg_sq"], squares).contiguous(),
        }

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        if not {"exp_avg", "exp_avg_sq"} <= set(moved):
            return {}
        mean, shape, rank = moved["exp_avg"], tuple(weight.shape), group["rank"]
        flat = subspaces(mean, rank, mean.new_zeros(projector_floats(shape, rank)))
        projectors = opened(flat, shape, rank)
        squares = {axis: projector.square() for axis, projector in projectors.items()}
        return {
            "exp_avg": cut(mean, projectors).contiguous(),
            "exp_avg_sq": cut(moved["exp_avg_sq"], squares).contiguous(),
            "projectors": flat,
        }
