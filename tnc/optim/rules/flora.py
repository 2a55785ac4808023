"""Flora: a momentum in a random projection of which only the seed is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.drawing import generator
from tnc.optim.kinds import Group, Kind, State
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.options import Count, NonNegative, Share
from tnc.optim.projections import (
    down,
    is_right,
    projected_shape,
    refuses_projection,
    up,
)
from tnc.optim.rule import Rule, rules

_SQUARES = 1e-30


@rules.register("flora")
class Flora(Rule):
    """Adafactor with momentum c, kept as `c A^T` with random A of variance `1 / rank`.

    `U' = G / sqrt(R C / mean R)`; `U = b U + (1 - b) U'`, where b U comes from `c A`;
    `W -= lr max(scale_floor, rms W) U / max(1, rms U)`. R and C are averages of row and column
    means of `G^2` with `b2 = 1 - t^-decay_rate`. Every `update_every` steps A is drawn anew and c
    goes with it, `c A A_new^T`: right on average, and `n / rank` times larger in square, since A is
    not orthonormal. `beta=None` leaves momentum out.

    State of a matrix (m, n), m at least n: `momentum` (m, r), `row_var` (m), `col_var` (n), a seed;
    A comes from seed and step. (Hao et al., Flora, ICML 2024, algorithm 2; Adafactor: Shazeer and
    Stern, 2018, algorithm 5.)
    """

    random: ClassVar[bool] = True
    kinds: ClassVar[Mapping[str, Kind]] = {
        "momentum": Kind.CHANGE,
        "variance": Kind.DIAGONAL,  # what `read` makes of rows and columns
        "row_var": Kind.DIAGONAL,
        "col_var": Kind.DIAGONAL,
        "right": Kind.OPAQUE,
    }
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {
        "variance": lambda state, group: 1.0  # the first gradient replaces the start
    }

    lr = 1e-2
    rank: Count = 128
    update_every: Count = 1000
    beta: Share | None = 0.9
    decay_rate: NonNegative = 0.8
    scale_floor: NonNegative = 1e-3
    seed: int = 0

    def refuses(self, weight: Tensor, group: Group) -> str:
        return refuses_projection(weight)

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        m, n = matrix_shape(tuple(weight.shape))
        found: dict[str, Any] = {"row_var": weight.new_zeros(m), "col_var": weight.new_zeros(n)}
        if group["beta"] is not None:
            found["momentum"] = weight.new_zeros(projected_shape((m, n), group["rank"]))
        return found | {"right": is_right(as_matrix(weight))}

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        matrix = as_matrix(gradient)
        change = _scaled(matrix, state, 1 - float(state["step"]) ** -group["decay_rate"])
        if group["beta"] is not None:
            change = _with_momentum(change, state, group)
        change.div_(change.square().mean().sqrt().clamp_min(1))
        length = weight.square().mean().sqrt().clamp_min(group["scale_floor"])
        self.decay_(weight, state, group)
        weight.add_(change.mul_(length).reshape(weight.shape), alpha=-group["lr"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        m, n = matrix_shape(shape)
        small = 0 if group["beta"] is None else prod(projected_shape((m, n), group["rank"]))
        return 4 * (small + m + n)

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        if "row_var" not in state:
            return {}
        rows, columns = state["row_var"], state["col_var"]
        mean = rows.mean().clamp_min(torch.finfo(rows.dtype).tiny)
        return {"variance": torch.outer(rows / mean, columns).reshape(weight.shape)}

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        if "variance" not in moved:
            return {}
        wide = torch.promote_types(weight.dtype, torch.float32)
        variance = as_matrix(moved["variance"].to(wide))
        return {"row_var": variance.mean(1), "col_var": variance.mean(0)}


def drawn(
    state: State, rank: int, side: int, update_every: int, steps: int, like: Tensor
) -> Tensor:
    """Return the projection `A (rank, side)` of a step, with `E[A^T A] = 1`."""
    source = generator(state["seed"], steps // update_every, like.device)
    found = torch.randn(rank, side, generator=source, dtype=torch.float32, device=like.device)
    return found.to(like).mul_(rank**-0.5)


def _scaled(matrix: Tensor, state: dict[str, Any], decay: float) -> Tensor:
    """Update Adafactor's averages and return the gradient over the root of what they say."""
    squares = matrix.square().add_(_SQUARES)
    rows, columns = state["row_var"], state["col_var"]
    rows.lerp_(squares.mean(1), 1 - decay)
    columns.lerp_(squares.mean(0), 1 - decay)
    found: Tensor = (matrix * (rows / rows.mean()).rsqrt_()[:, None]).mul_(columns.rsqrt())
    return found


def _with_momentum(change: Tensor, state: dict[str, Any], group: Group) -> Tensor:
    """Return `(1 - b) U' + b c A`, and move c on: to the next projection where it is time."""
    beta, right, kept = group["beta"], state["right"], state["momentum"]
    steps, every = int(state["step"]), group["update_every"]
    side, rank = change.shape[right], kept.shape[right]
    projector = drawn(state, rank, side, every, steps - 1, kept)
    whole = up(kept, projector, right)
    if steps % every == 0:
        projector = drawn(state, rank, side, every, steps, kept)
        kept.copy_(down(whole, projector, right))
    kept.lerp_(down(change, projector, right), 1 - beta)
    return change.lerp_(whole, beta)
